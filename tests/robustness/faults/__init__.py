"""The fault suite: what can go wrong in a checkpoint or in our own work, and the one check that catches each.

`checks` knows how to replace each check by a pass; `faults_*` list the faults by what they damage; `test_faults` runs
each with its check alone and with none, and writes `docs/faults.md` from what it saw (WRITE_DOCS=1).
"""
