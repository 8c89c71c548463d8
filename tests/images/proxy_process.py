"""A proxy for HTTP, as a process of its own: python proxy_process.py LOG [USER:PASSWORD] [KEY,CERTIFICATE] [NAME=HOST:PORT…]

With key and certificate it speaks TLS itself. It prints its port, writes the first line of each request and its Proxy-Authorization to LOG, tunnels (CONNECT) and forwards GET by whole URLs. A NAME is known
to it alone.
"""

import base64
import contextlib
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit


class Proxy(NamedTuple):
    """A process that is running."""

    authority: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://{self.authority}"

    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()


@contextlib.contextmanager
def a_proxy(
    directory: Path, *words: str, certified: tuple[Path, Path] | None = None
) -> Iterator[Proxy]:
    log = directory / "proxy.log"
    log.touch()
    own = [] if certified is None else [",".join(map(str, certified))]
    process = subprocess.Popen(
        [sys.executable, __file__, str(log), *words, *own],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield Proxy(f"127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def serve(log: Path, *words: str) -> None:
    names = dict(word.split("=") for word in words if "=" in word)
    known = next((word for word in words if ":" in word and "=" not in word), None)
    certified = next((word.split(",") for word in words if "," in word), None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certified:
        context.load_cert_chain(certified[1], certified[0])
    right = known and f"Basic {base64.b64encode(known.encode()).decode()}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            client, _ = server.accept()
            if certified:
                try:
                    client = context.wrap_socket(client, server_side=True)
                except OSError:
                    continue  # It does not trust us.
            threading.Thread(target=answer, args=(client, log, right, names), daemon=True).start()


def answer(client: socket.socket, log: Path, right: str | None, names: dict[str, str]) -> None:
    with client, contextlib.suppress(OSError):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (piece := client.recv(1)):
                return
            head += piece
        lines = head.decode().split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
        with log.open("a") as file:
            file.write(f"{method} {target}\n")
        if right and headers.get("proxy-authorization") != right:
            client.sendall(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
            )
            return
        authority = target if method == "CONNECT" else urlsplit(target).netloc
        host, _, port = names.get(authority.rpartition(":")[0], authority).rpartition(":")
        try:
            there = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        except OSError:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        with there:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                path = target.partition(authority)[2]
                kept = [line for line in lines[1:-2] if not line.lower().startswith("proxy-")]
                there.sendall("\r\n".join([f"{method} {path} HTTP/1.1", *kept, "", ""]).encode())
            join(client, there)


def join(one: socket.socket, other: socket.socket) -> None:
    """Until either says no more."""
    while True:
        for ready in select.select([one, other], [], [])[0]:
            if not (piece := ready.recv(65536)):
                return
            (other if ready is one else one).sendall(piece)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), *sys.argv[2:])
