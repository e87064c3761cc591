#!/usr/bin/env python3
"""on_failure, on_success: says in a chat room what happened, through an incoming webhook. Standard library only.

    on_failure = ["/usr/bin/python3", "/etc/dcp2hf/hooks/chat.py", "/etc/dcp2hf/chat-url"]

The address is a secret: it lies in a file that the service's user can read.
"""

import json
import sys
import urllib.request
from pathlib import Path

ALARM = "NaN or infinity in the weights"


def text(facts: dict) -> str:
    """One line a person reads on a phone, and what to do."""
    step = f"{facts['run']} step {facts['step']}"
    if facts["event"] == "on_success":
        return f"{step} is published: {facts['output']}"
    what = ALARM if facts["reason"] == "non_finite" else facts["error"]
    again = "given up" if facts["quarantined"] else f"tried again at {facts['retry_at']}"
    return f"{step}: {what}: {facts['message']} ({again})\n{facts['hint']}"


def main() -> None:
    facts = json.load(sys.stdin)
    request = urllib.request.Request(
        Path(sys.argv[1]).read_text().strip(),
        json.dumps({"text": text(facts)}).encode(),
        {"Content-Type": "application/json", "Idempotency-Key": facts["key"]},
    )
    with urllib.request.urlopen(request, timeout=20):
        pass


if __name__ == "__main__":
    main()
