"""Ports of loopback for servers that have to be told one."""

import os
import socket
from itertools import count
from pathlib import Path

_FIRST = 10_000
_LARGEST_RUN = 8
"""Test processes of one run; each has ports of its own."""
_LEAST_FOR_EACH = 500
"""Also where the kernel gives nearly all ports to connections."""


def free_port() -> int:
    """One that nobody listens on, and that nobody else of this run is given before its server listens.

    Where there is room below them, none of those that the kernel gives to connections (ip(7), ip_local_port_range): one of these can be taken between the look and the
    server's start, or while a server is started again.
    """
    while True:
        port = _first + next(_given) % _ports_for_each
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


_end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
_ports_for_each = max((_end - _FIRST) // _LARGEST_RUN, _LEAST_FOR_EACH)
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_first = _FIRST + _worker % _LARGEST_RUN * _ports_for_each
_given = count(os.getpid())
