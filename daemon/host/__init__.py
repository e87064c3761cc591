"""This machine: child processes, mounts, systemd, logs."""
