"""The history of steps: SQLite, attempts, outbox, Slurm jobs, and the queries of the status page."""
