"""The process that touches one root, and its client: root, run, step, published directory, inotify, messages."""
