"""Every call fails once, and kill -9 at every point: what converter, scanner and daemon promise then.

`seam` is where all file calls go through; `plans` lists what each kind of call can give; `family` forks a process for
each case; `conversion`, `scanner` and `daemon` hold the cases and what is promised; `survival` owns the summary.
A plain run tries a part of the points, every kind and errno among them; ALL_POINTS=1 (`make faults`) tries all.
"""
