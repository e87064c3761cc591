"""Runs in a guest: takes commands over TCP, one a connection, and answers with exit status and output.

In: a JSON line, the argument vector. Out: a JSON line {"status", "output"}.
"""

import json
import socketserver
import subprocess
import tempfile

PORT = 9000


class Command(socketserver.StreamRequestHandler):
    """One command. Its output is a file: what it leaves running does not hold up the answer, as a pipe would."""

    def handle(self) -> None:
        argv = json.loads(self.rfile.readline())
        with tempfile.TemporaryFile(dir="/run") as output:
            try:
                status = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output).returncode
            except OSError as error:
                status = 127
                output.write(str(error).encode())
            output.seek(0)
            answer = {"status": status, "output": output.read().decode(errors="replace")}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("0.0.0.0", PORT), Command).serve_forever()
