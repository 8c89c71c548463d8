"""Listening and serving: the socket, and uvicorn set up for it."""

import contextlib
import os
import resource
import socket
import stat
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from sandboxd.addresses import parse_address
from sandboxd.api.connections import MOST_TOLD, Connection, SocketConnection
from sandboxd.errors import HostNotReady
from sandboxd.settings import ServerSettings

_BACKLOG = 2048
_OWN_FILES = 128
"""Database, listeners, the event loop, metrics, images in use."""
_FILES_OF_A_JOB = 16
"""Its three pipes (both ends while it starts), its log and that log's index, its sandbox."""
_FILES_OF_A_SANDBOX = 4
"""Socket, pidfd, cgroup."""
_FILES_OF_EGRESS = (32, 2)
"""In addition, of a job: its namespaces, its resolver and what that asks, pasta, and nft while it runs; of a parked sandbox."""
_MESSAGE_BYTES = 2 * 2**20
"""The largest message of a socket: the first one carries a command and its environment."""
_PING_SECONDS = 20.0
_LEAST_CONNECTIONS = 16
_MOST_CONNECTIONS = 10_000
"""Each costs memory too: about 30 KB."""
_SOCKET_MODE = 0o660


class Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process before the jobs are settled."""

    def __init__(self, api: ASGIApp, settings: ServerSettings, *, most_connections: int) -> None:
        super().__init__(
            uvicorn.Config(
                api,
                http=Connection,
                ws=SocketConnection,
                ws_max_size=_MESSAGE_BYTES,
                ws_ping_interval=_PING_SECONDS,
                ws_ping_timeout=_PING_SECONDS,
                # A few bytes could become many, and what a terminal shows is small.
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                # Nobody asks for the client's address: what a proxy says of it is not read.
                proxy_headers=False,
                server_header=False,
                limit_concurrency=most_connections,
                timeout_graceful_shutdown=max(1, int(settings.shutdown_grace_seconds)),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: `app` hears the signals."""
        yield

    def stop(self, *, at_once: bool) -> None:
        """Take no more requests and end; `at_once` without waiting for those under way."""
        self.force_exit = self.force_exit or at_once
        self.should_exit = True


def raise_open_files() -> int:
    """Raise the soft limit of this process's descriptors to the hard one. Returns it.

    The soft one is 1,024 on most hosts, for programs that use select(2); nothing here does.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def connection_limit(open_files: int, *, slots: int, parked: int, egress: bool = False) -> int:
    """How many connections leave the descriptors that `slots` jobs and `parked` sandboxes need."""
    reserved = _OWN_FILES + slots * _FILES_OF_A_JOB + parked * _FILES_OF_A_SANDBOX
    if egress:
        of_a_job, of_a_sandbox = _FILES_OF_EGRESS
        reserved += slots * of_a_job + parked * of_a_sandbox
    return max(_LEAST_CONNECTIONS, min(_MOST_CONNECTIONS, open_files - reserved - MOST_TOLD))


def open_listener(listen: str) -> socket.socket:
    """The socket for an address of the settings.

    Raises HostNotReady, with what is in the way.
    """
    address = parse_address(listen)
    try:
        if address.path is not None:
            return _open_unix(address.path)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        where = (address.host, address.port)
        return socket.create_server(where, family=family, backlog=_BACKLOG)
    except OSError as error:
        raise HostNotReady(f"cannot listen on {listen}: {os.strerror(error.errno or 0)}") from error


def _open_unix(path: str) -> socket.socket:
    """A socket file for this user and group; one that a dead service left is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode) and not _somebody_listens(path):
            os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True
