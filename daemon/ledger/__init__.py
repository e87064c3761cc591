"""What is remembered: SQLite, attempts, outbox, Slurm jobs, what the page asks."""
