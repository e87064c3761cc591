"""The shipped unit on hosts that share a folder over NFS: other hosts write, the server hangs, power fails."""
