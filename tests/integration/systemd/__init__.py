"""The shipped unit under a real systemd: start, reload, stop, watchdog, limits, and every way to die."""
