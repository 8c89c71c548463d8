"""The operator hears of a tenant that has used most of what it may have: once, and also after a restart."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import patient_http
import pytest
from running_service import RunningService, running_service
from waiting import wait_for

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NOISY = {"image": "host", "command": ["sh", "-c", "head -c 85000 /dev/zero"]}
QUIET = {"image": "host", "command": ["true"]}
WAIT = {"Prefer": "wait=30"}


@contextmanager
def receiver(port: int = 0) -> Iterator[tuple[int, list[Any]]]:
    """A web server that takes everything: its port, and the bodies that came."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port, received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def service_that_tells(port: int) -> Iterator[RunningService]:
    settings = {
        "webhooks_url": f"http://127.0.0.1:{port}/hook",
        "webhooks_secret": SECRET,
        "quotas_storage_bytes": 100_000,
    }
    with running_service(flags=("--no-auth", "--slots", "2"), **settings) as service:
        yield service


def backlog(service: RunningService) -> float:
    text = patient_http.get(f"http://127.0.0.1:{service.metrics_port}/metrics").text
    (figure,) = re.findall(r"^sandboxd_webhook_backlog (\S+)$", text, re.MULTILINE)
    return float(figure)


@pytest.mark.usefixtures("prepared_host")
def test_the_operator_is_told_once_when_a_tenant_has_used_most_of_a_quota() -> None:
    with receiver() as (port, received), service_that_tells(port) as service:
        with service.http() as http:
            states = [http.post("/v1/jobs", json=NOISY, headers=WAIT).json()["state"]]
            wait_for(lambda: received, "the event is there")
            states.append(http.post("/v1/jobs", json=QUIET, headers=WAIT).json()["state"])
        wait_for(lambda: backlog(service) == 0, "nothing is left to be told")

    assert states == ["succeeded"] * 2
    (event,) = received
    assert event["type"] == "quota.threshold"
    assert event["data"]["policy"] == "storage_bytes"
    assert 85_000 < event["data"]["used"] < 90_000
    assert event["data"]["allowed"] == 100_000


@pytest.mark.usefixtures("prepared_host")
def test_what_could_not_be_delivered_is_delivered_after_a_restart() -> None:
    with receiver() as (port, _):
        pass
    with service_that_tells(port) as service:
        with service.http() as http:
            http.post("/v1/jobs", json=NOISY, headers=WAIT)
        wait_for(lambda: backlog(service) == 1, "it is to be delivered yet")
        service.kill()
        with receiver(port) as (_, received):
            service.start()
            wait_for(lambda: received, "the event is there", seconds=30)
            wait_for(lambda: backlog(service) == 0, "it is delivered")

    assert [event["data"]["policy"] for event in received] == ["storage_bytes"]
