"""Where a conversion runs: local process or Slurm; what a converter says of itself."""
