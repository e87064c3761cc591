"""Conversions as jobs of a Slurm cluster. Imported only if a root's `runner` asks for it, or if such a job is left."""
