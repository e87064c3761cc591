"""The views of the daemon's state: report, terminal, page, metrics, health, HTTP."""
