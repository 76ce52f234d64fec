"""Run in a network namespace of its own: serves HOME with the bundled model, and makes the first request.

Prints one JSON object: whether another machine could be reached, and what the model's answer was."""

from __future__ import annotations

import errno
import fcntl
import json
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def raise_loopback() -> None:
    """A new namespace has nothing but it, and has it down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        asked = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def reachable() -> bool:
    with socket.socket() as there:
        return there.connect_ex(("192.0.2.1", 443)) != errno.ENETUNREACH


def first_request(url: str, home: Path) -> dict[str, object]:
    key = json.loads((home / "keys.json").read_text())["project_key"]
    body = {"model": "perilune-nano", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(
        f"{url}/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        told: dict[str, object] = json.loads(answer.read())
    return told


def main(home: Path) -> None:
    raise_loopback()
    command = [sys.executable, "-m", "perilune", "serve", "--home", str(home), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            said = next(line for line in server.stdout if " at http" in line)
            answer = first_request(said.split()[-1], home)
        finally:
            server.send_signal(signal.SIGTERM)
    print(json.dumps({"reachable": reachable(), "answer": answer, "ended": server.returncode}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
