"""Conversions as Slurm jobs: the judgement by tables of what a real Slurm says, and the whole on a real one of one node."""
