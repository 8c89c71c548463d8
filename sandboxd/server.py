"""Listening and serving: the socket, and uvicorn set up for it."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from sandboxd.addresses import parse_address
from sandboxd.api.connections import Connection
from sandboxd.errors import HostNotReady
from sandboxd.settings import ServerSettings

_BACKLOG = 2048
_SOCKET_MODE = 0o660


class Server(uvicorn.Server):
    """uvicorn without its own signal handling, which would end the process before the jobs are settled."""

    def __init__(self, api: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                api,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, int(settings.shutdown_grace_seconds)),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: `app` hears the signals."""
        yield

    def stop(self) -> None:
        """Take no more requests and end; the second time without waiting for those under way."""
        self.force_exit = self.should_exit
        self.should_exit = True


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
