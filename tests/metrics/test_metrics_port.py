"""The port for Prometheus: whoever reaches it can take little, and not for long."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx2
import patient_http
from ports import free_port
from waiting import wait_for

from sandboxd import metrics_port


def render(accept: str) -> tuple[bytes, str]:
    return f"asked for {accept}\n".encode(), "text/plain"


@contextmanager
def port(*, most_connections: int = 4, deadline_seconds: float = 30.0) -> Iterator[int]:
    number = free_port()
    close = metrics_port.serve(
        "127.0.0.1",
        number,
        render,
        most_connections=most_connections,
        deadline_seconds=deadline_seconds,
    )
    try:
        yield number
    finally:
        close()


def connect(number: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", number), timeout=30)


def test_it_answers_metrics_and_nothing_else() -> None:
    with port() as number:
        found = patient_http.get(f"http://127.0.0.1:{number}/metrics", headers={"Accept": "text/x"})
        other = patient_http.get(f"http://127.0.0.1:{number}/")
        posted = patient_http.post(f"http://127.0.0.1:{number}/metrics")

    assert (found.status_code, found.text) == (200, "asked for text/x\n")
    assert other.status_code == 404
    assert posted.status_code == 501


def test_a_connection_more_than_there_are_places_is_closed_at_once() -> None:
    before = threading.active_count()
    with port(most_connections=4) as number, ExitStack() as stack:
        silent = [stack.enter_context(connect(number)) for _ in range(4)]
        too_many = stack.enter_context(connect(number))

        assert too_many.recv(1) == b""
        assert threading.active_count() - before <= 1 + 4
        for each in silent:
            each.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert each.recv(100).startswith(b"HTTP/1.0 200")


def test_who_says_nothing_is_cut_and_makes_place_for_prometheus() -> None:
    with port(most_connections=2, deadline_seconds=0.2) as number, ExitStack() as stack:
        silent = [stack.enter_context(connect(number)) for _ in range(2)]

        assert [each.recv(1) for each in silent] == [b"", b""]

        def answered() -> bool:
            try:
                return patient_http.get(f"http://127.0.0.1:{number}/metrics").status_code == 200
            except httpx2.TransportError:
                return False  # Its thread gives the place back a moment after it closed.

        wait_for(answered, "there is a place again")


def test_after_the_end_nobody_listens() -> None:
    with port() as number:
        connect(number).close()

    with socket.socket() as again:
        assert again.connect_ex(("127.0.0.1", number)) != 0
