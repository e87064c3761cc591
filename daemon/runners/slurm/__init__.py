"""Conversions as jobs of a Slurm cluster. Imported only where a root's `runner` says so, or a job of such a time is left."""
