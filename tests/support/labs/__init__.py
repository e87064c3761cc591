"""Real machines for tests, on one host and as root: a systemd as PID 1, and hosts that share a folder over NFS.

They run the shipped unit, installed as docs/operators.md says. Nothing of them outlives the test session: every process is
tied to it by the kernel (PR_SET_PDEATHSIG, PID namespaces), and namespaces and mounts end with their last process. Only a
session that is killed leaves something, the empty control groups of `namespaces`.
"""
