"""The service that is measured: started as the tests start it, on loopback, with a data directory on a disk of its own.

What the tests have for real services, registries and images is used here as it is.
"""

import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from pathlib import Path
from types import MappingProxyType
from typing import Any

TREE = Path(__file__).resolve().parents[1]
sys.path += [str(TREE / "tests"), str(TREE / "tests" / "images")]

import archives
import registries
from running_service import BLANKS, RunningService
from waiting import wait_for

__all__ = ["BLANKS", "archives", "registries", "wait_for"]

TRUE = "/bin/true"
JOB = {"image": "host", "command": [TRUE]}
NO_SETTINGS: Mapping[str, str | int] = MappingProxyType({})


class WentWrongError(Exception):
    """What was measured did not do what it should: there is no figure."""


class MeasuredService(RunningService):
    """With byte code from a directory of the bench, as an installation has it: else each start would compile everything."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **byte_code()}

    def connection(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port)

    def _is_ready(self) -> bool:
        """Asked again and again while the service starts, so with a client that costs little."""
        assert self.process.poll() is None, f"the service ended:\n{self.log_file.read_text()}"
        with contextlib.closing(self.connection()) as connection:
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            except ConnectionError:
                return False


@functools.cache
def byte_code() -> Mapping[str, str]:
    """Settings with which Python keeps what it compiles in a directory of the bench. Who starts a program first fills it."""
    directory = tempfile.TemporaryDirectory(prefix="sandboxd-bench-code-", dir="/var/tmp")
    _kept.append(directory)
    return {"PYTHONPYCACHEPREFIX": directory.name, "PYTHONDONTWRITEBYTECODE": ""}


_kept: list["tempfile.TemporaryDirectory[str]"] = []
"""Removed when the program ends."""


@functools.cache
def start_once() -> None:
    """A service that compiled everything takes longer to start, and more memory, than all that follow."""
    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-", dir="/var/tmp") as made:
        MeasuredService(Path(made, "data")).start().stop()


@contextlib.contextmanager
def running_service(
    data_dir: Path | None = None,
    *,
    slots: int = 0,
    start: bool = True,
    settings: Mapping[str, str | int] = NO_SETTINGS,
) -> Iterator[MeasuredService]:
    """A service for the length of the block, in which it is started by whoever does not want it to `start` before.

    `data_dir`: where its data directory is made. `settings`: `server_max_body_bytes` for SANDBOXD_SERVER_MAX_BODY_BYTES and so on.
    """
    flags = ("--no-auth", "--slots", str(slots)) if slots else ("--no-auth",)
    start_once()
    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-", dir=data_dir or "/var/tmp") as made:
        service = MeasuredService(Path(made, "data"), flags=flags, **dict[str, Any](settings))
        try:
            if start:
                service.start()
            yield service
            service.stop()
            service.remove_images()
        except BaseException:
            # Files of images are of subordinate ids: only the service can remove them.
            with contextlib.suppress(Exception):  # the first failure is the one to tell
                service.stop()
                service.remove_images()
            raise
        finally:
            if service.process.poll() is None:
                service.kill()


def job_done(connection: HTTPConnection, request: str) -> dict[str, Any]:
    """One job to its end. Raises WentWrongError if it did not succeed."""
    answer = ask(connection, "POST", "/v1/jobs", request)
    if answer.get("state") != "succeeded":
        raise WentWrongError(f"the job did not succeed: {json.dumps(answer)}")
    return answer


def ask(
    connection: HTTPConnection, method: str, path: str, body: str, *, wait: bool = True
) -> dict[str, Any]:
    """The answer as it is, of any status; that of a job at its end, if we `wait`."""
    headers = {"Content-Type": "application/json"} | ({"Prefer": "wait=60"} if wait else {})
    connection.request(method, path, body, headers)
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    return answer
