"""The process that has torch, both ends: client, process, session; the real adapter's plan; both forward passes
and their comparison."""
