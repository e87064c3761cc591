"""The machine of the daemon: child processes, mounts, systemd, logs."""
