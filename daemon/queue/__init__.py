"""Waiting steps, running conversions, results of attempts, disk space, log events, hook delivery."""
