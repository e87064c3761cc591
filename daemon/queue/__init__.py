"""Steps that wait, conversions that run, results of attempts, disk space, log events, hook delivery."""
