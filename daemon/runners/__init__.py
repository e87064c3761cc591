"""Where a conversion runs (local process or Slurm), and the output of a converter."""
