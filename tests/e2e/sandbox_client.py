"""Sandboxes over plain HTTP, as any program would use them."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Self

import httpx2
from running_service import RunningService, data_directory


class Box:
    """One sandbox of a service."""

    def __init__(self, http: httpx2.Client, **wish: Any) -> None:
        made = http.post("/v1/sandboxes", json=wish)
        assert made.status_code == 201, made.text
        self.http = http
        self.id: str = made.json()["id"]
        self.path = f"/v1/sandboxes/{self.id}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.delete(self.path)

    def view(self) -> Any:
        return self.http.get(self.path).json()

    def post(self, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(f"{self.path}/{path}", json=body, headers=names, timeout=60)

    def run(self, *command: str, **wish: Any) -> Any:
        """A command to its end, as JSON."""
        answer = self.post("exec", {"command": list(command), **wish})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def shell(self, script: str, **wish: Any) -> str:
        """What a script prints; it must succeed."""
        ran = self.run("sh", "-c", script, **wish)
        assert ran["state"] == "succeeded", ran
        out: str = ran["stdout"]
        return out

    def begin(self, *command: str, **wish: Any) -> Any:
        """A command that goes on."""
        answer = self.post("exec", {"command": list(command), **wish}, prefer="respond-async")
        assert answer.status_code == 202, answer.text
        return answer.json()

    def end_of(self, execution: Any) -> Any:
        """A command that was begun, when it is over."""
        answer = self.http.get(f"{self.path}/execs/{execution['id']}?wait=30", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextlib.contextmanager
def service_of_two_tenants(
    *flags: str,
) -> Iterator[tuple[RunningService, list[str]]]:
    """A service of its own, and three keys: one tenant's, another's, and one of the first tenant's that may only read."""
    with data_directory() as data_dir:
        service = RunningService(data_dir, flags=flags, isolation_single_id_many_tenants="true")
        keys = [service.make_key("a"), service.make_key("b"), service.make_key("a", ["jobs:read"])]
        service.start()
        try:
            yield service, keys
        finally:
            service.stop()


def events(text: str) -> list[tuple[str, Any]]:
    """Server-sent events, by name and data."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found
