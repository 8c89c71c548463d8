"""Sockets to commands, with a terminal and without, as any WebSocket client would use them."""

import json
import socket
import struct
from typing import Any, Self

import httpx2
import psutil
import pytest
from running_service import RunningService
from sandbox_client import Box, service_of_two_tenants
from waiting import wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

MIB = 2**20


def address(service: RunningService, box: Box) -> str:
    return f"ws://127.0.0.1:{service.port}{box.path}/exec/ws"


class Talk:
    """One socket to a command, in a test."""

    def __init__(self, service: RunningService, box: Box, *command: str, **wish: Any) -> None:
        self._connecting = connect(address(service, box), compression=None, max_size=None)
        self.socket: ClientConnection = self._connecting.__enter__()
        self.socket.send(json.dumps({"command": list(command), **wish}))
        self.out = {1: b"", 2: b""}
        self.said: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connecting.__exit__(None, None, None)

    def hear(self) -> None:
        message = self.socket.recv(timeout=30)
        if isinstance(message, bytes):
            self.out[message[0]] += message[1:]
        else:
            self.said.append(json.loads(message))

    def until(self, text: bytes) -> None:
        while text not in self.out[1]:
            self.hear()

    def tell(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def end(self) -> Any:
        """What the service says at the end; then it closes."""
        while not self.said or self.said[-1]["type"] == "started":
            self.hear()
        with pytest.raises(ConnectionClosed) as closed:
            self.socket.recv(timeout=30)
        received = closed.value.rcvd
        assert received is not None
        self.said[-1]["code"] = received.code
        return self.said[-1]


def test_input_and_output_pass_both_ways_and_the_end_is_told(
    box: Box, real_service: RunningService
) -> None:
    with Talk(real_service, box, "sh", "-c", "cat; echo wrong >&2; exit 5") as talk:
        talk.socket.send(b"one\n")
        talk.until(b"one\n")
        talk.socket.send(b"two\n")
        talk.tell(type="end_of_input")
        ended = talk.end()

    assert talk.said[0]["type"] == "started"
    assert talk.out == {1: b"one\ntwo\n", 2: b"wrong\n"}
    assert (ended["type"], ended["code"], ended["exec"]["exit"]["code"]) == ("exit", 1000, 5)


def test_a_terminal_is_one_with_its_size_and_its_signals(
    box: Box, real_service: RunningService
) -> None:
    terminal = {"rows": 30, "columns": 100}
    with Talk(real_service, box, "bash", "--norc", "-i", terminal=terminal) as talk:
        talk.socket.send(b"tty; stty size; echo re''ady\n")
        talk.until(b"\nready\r\n")
        assert b"/dev/pts/0\r\n30 100\r\n" in talk.out[1]
        talk.tell(type="resize", rows=50, columns=140)
        talk.socket.send(b"stty size; echo d''one\n")
        talk.until(b"\ndone\r\n")
        assert b"50 140\r\n" in talk.out[1]
        talk.socket.send(b"sh -c 'echo sta\"\"rted; exec sleep 1000'\n")
        talk.until(b"started\r\n")
        talk.socket.send(b"\x03")
        talk.socket.send(b"echo co''de $?; exit 7\n")
        talk.until(b"code 130\r\n")
        assert talk.end()["exec"]["exit"]["code"] == 7


def test_a_client_that_leaves_hangs_up(box: Box, real_service: RunningService) -> None:
    for terminal in ({"rows": 24, "columns": 80}, None):
        talk = Talk(real_service, box, "sh", "-c", "echo ready; sleep 1234", terminal=terminal)
        talk.until(b"ready")
        talk.socket.socket.close()  # no word of it

        wait_for(
            lambda: box.shell("ps -C sleep -o pid= | wc -l") == "0\n", "it is gone", seconds=30
        )


def test_a_signal_reaches_the_command(box: Box, real_service: RunningService) -> None:
    with Talk(
        real_service,
        box,
        "sh",
        "-c",
        "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done",
    ) as talk:
        talk.until(b"ready")
        talk.tell(type="signal", signal="SIGUSR1")

        assert talk.end()["exec"]["exit"]["code"] == 9


def test_what_is_left_running_does_not_hold_the_socket(
    box: Box, real_service: RunningService
) -> None:
    with Talk(real_service, box, "sh", "-c", "sleep 1000 & echo done") as talk:
        assert talk.end()["exec"]["state"] == "succeeded"

    assert talk.out[1] == b"done\n"


@pytest.mark.parametrize(
    ("first", "pointer"),
    [
        ('{"command": []}', "/command"),
        ('{"command": ["a"], "what": 1}', "/what"),
        ('{"command": ["a"], "terminal": {"rows": 0}}', "/terminal/rows"),
        ('{"command": ["a"], "wall_seconds": 1e9}', "/wall_seconds"),
        ("[", None),
        (b"\x00", None),
    ],
)
def test_a_first_message_that_makes_no_sense_is_refused_with_a_problem(
    first: str | bytes, pointer: str | None, box: Box, real_service: RunningService
) -> None:
    with connect(address(real_service, box)) as connection:
        connection.send(first)
        problem = json.loads(connection.recv(timeout=10))["problem"]
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=10)

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert [fault["pointer"] for fault in problem.get("errors", [])] == [pointer] * bool(pointer)


def test_a_later_message_that_makes_no_sense_ends_the_command(
    box: Box, real_service: RunningService
) -> None:
    with Talk(real_service, box, "sleep", "1000") as talk:
        talk.tell(type="dance")
        ended = talk.end()

    assert (ended["type"], ended["code"]) == ("problem", 1008)


def test_a_command_that_cannot_run_is_told_as_an_end(
    box: Box, real_service: RunningService
) -> None:
    for terminal in ({"rows": 24, "columns": 80}, None):
        with Talk(real_service, box, "no-such", terminal=terminal) as talk:
            assert talk.end()["exec"]["reason"] == "command_not_found"


def test_a_message_that_is_too_large_closes_the_socket(
    box: Box, real_service: RunningService
) -> None:
    with Talk(real_service, box, "cat") as talk:
        talk.hear()
        # Its head says it (RFC 6455, 5.2). What came after that would reset the connection, and the reason be lost.
        talk.socket.socket.sendall(struct.pack("!BBQ", 0x82, 0x80 | 127, 3 * MIB) + bytes(4))
        with pytest.raises(ConnectionClosed) as closed:
            talk.socket.recv(timeout=10)

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


def test_a_client_that_reads_nothing_does_not_fill_the_service(
    box: Box, real_service: RunningService
) -> None:
    service = psutil.Process(real_service.process.pid)
    before = service.memory_info().rss
    host = socket.create_connection(("127.0.0.1", real_service.port))
    host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    host.sendall(
        f"GET {box.path}/exec/ws HTTP/1.1\r\nHost: 127.0.0.1:{real_service.port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b" 101 " in host.recv(4096)
    first = json.dumps({"command": ["yes"]}).encode()
    mask = bytes(4)
    host.sendall(struct.pack("!BB", 0x81, 0x80 | len(first)) + mask + first)

    def asleep() -> bool:
        return box.shell("ps -C yes -o stat= | head -c1") == "S"

    wait_for(asleep, "it waits for its reader")
    assert service.memory_info().rss < before + 16 * MIB
    host.close()
    wait_for(lambda: box.shell("ps -C yes -o pid= | wc -l") == "0\n", "it is gone", seconds=60)


def test_a_socket_is_refused_like_any_other_request(prepared_host: None) -> None:
    with (
        service_of_two_tenants() as (service, keys),
        service.http(keys[0]) as http,
        Box(http) as box,
    ):
        where = address(service, box)
        bearers = [{}, *({"Authorization": f"Bearer {key}"} for key in keys[1:])]
        for headers, status in zip(bearers, (401, 404, 403), strict=True):
            with pytest.raises(InvalidStatus) as refused:
                connect(where, additional_headers=headers)
            assert refused.value.response.status_code == status
            problem = json.loads(refused.value.response.body or b"")
            assert problem["status"] == status
        mine = {"Authorization": f"Bearer {keys[0]}"}
        with connect(where, additional_headers=mine) as connection:
            assert connection.response is not None
            assert "x-request-id" in connection.response.headers


@pytest.mark.attack(39)
def test_a_page_from_elsewhere_gets_no_socket(box: Box, real_service: RunningService) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        with pytest.raises(InvalidStatus) as refused:
            connect(address(real_service, box), additional_headers=headers)
        assert refused.value.response.status_code in (400, 403)


def test_without_an_upgrade_it_says_what_it_is(box: Box) -> None:
    answer: httpx2.Response = box.http.get(f"{box.path}/exec/ws")

    assert (answer.status_code, answer.headers["upgrade"]) == (426, "websocket")
