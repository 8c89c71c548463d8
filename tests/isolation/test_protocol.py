"""Messages between the processes: what goes in comes out, and nothing that a sandbox sends can hurt the service."""

import array
import asyncio
import json
import math
import os
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_bench import Bench

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import hearing, protocol
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import (
    Command,
    Exit,
    File,
    NetworkMode,
    OciRuntime,
    SandboxSpec,
    Then,
    Unusable,
)

SPEC = SandboxSpec(rootfs="/images/a", scratch_bytes=2**20, scratch_inodes=100)
EXITED: dict[str, Any] = {
    "at": 1.5,
    "code": 0,
    "signal": None,
    "cpu_user_seconds": 0.1,
    "cpu_system_seconds": 0.2,
    "max_rss_bytes": 2**20,
    "alone": True,
}


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("message", "decoder"),
    [
        (protocol.MapYourself(id_count=65536), protocol.from_above),
        (
            protocol.Create(
                number=7, spec=SPEC, join_files=("/a", "/b"), into_cgroup=False, show_cgroup=True
            ),
            protocol.from_above,
        ),
        (
            protocol.Create(
                number=8,
                spec=SPEC._replace(runtime=OciRuntime("runc", "/usr/sbin/runc", ("--debug",))),
                join_files=(),
                into_cgroup=True,
                show_cgroup=False,
            ),
            protocol.from_above,
        ),
        (protocol.Shape(SPEC._replace(network=NetworkMode.EGRESS)), protocol.from_above),
        (protocol.Unshared(), hearing.from_launcher),
        (protocol.LauncherReady(own_clocks=True), hearing.from_launcher),
        (protocol.Created(number=1, pid=4711), hearing.from_launcher),
        (protocol.CreateFailed(number=1, step="clone3", reason="no"), hearing.from_launcher),
        (protocol.Signal(command=3, number=15), protocol.from_above),
        (protocol.Go(command=3), protocol.from_above),
        (
            protocol.Place(files=(File("/work/a", 0o644, 3), File("/work/d", 0o755, None))),
            protocol.from_above,
        ),
        (
            protocol.Collect(base="/work", patterns=("*", "é"), most_bytes=9, most_entries=1),
            protocol.from_above,
        ),
        (protocol.Look(path="/work", most_entries=9), protocol.from_above),
        (protocol.Remove(path="/work/é"), protocol.from_above),
        (protocol.Read(paths=("/etc/passwd", "/é"), most_bytes=9), protocol.from_above),
        (protocol.Unpack(most_bytes=1, most_entries=2, id_count=65536), protocol.from_above),
        (protocol.Empty(), protocol.from_above),
        (protocol.Begun(), hearing.from_init),
        (protocol.Ready(), hearing.from_init),
        (protocol.Failed(step="pivot_root", reason="EPERM"), hearing.from_init),
        (protocol.Loaded(command=1), hearing.from_init),
        (protocol.NotLoaded(command=1, step="runtime runc", reason="create"), hearing.from_init),
        (protocol.Started(command=1, at=3.25), hearing.from_init),
        (protocol.StartedInTerminal(command=1, at=3.25), hearing.from_init),
        (
            protocol.NotStarted(command=1, why=Unusable(what="command", errno=2)),
            hearing.from_init,
        ),
        (protocol.Exited(command=1, exit=Exit(**EXITED)), hearing.from_init),
        (protocol.NotPlaced(number=7, errno=28), hearing.from_init),
        (protocol.Done(entries=3, size_bytes=2**40), hearing.from_init),
    ],
)
def test_every_message_arrives_as_it_was_sent(
    message: protocol.Message, decoder: Any, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    protocol.send(ours, message)

    assert protocol.receive(theirs, decoder) == (message, [])


@pytest.mark.parametrize("size", [0, 100, 2**16 - 200, 2**16, 2**20, 7 * 2**20])
def test_a_command_with_any_environment_arrives_with_its_descriptors(
    size: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    """What does not fit a datagram goes by a memfd, and the descriptors come after it in their order."""
    ours, theirs = ends
    command = Command(argv=("a",), env={"E": "x" * size}, workdir="/", rlimits={"nofile": 1})
    pipes = [os.pipe() for _ in range(2)]
    sent = [end for pipe in pipes for end in pipe][:3]
    before = open_descriptors()

    run = protocol.Run(number=1, command=command, then=Then.CLEAR)
    protocol.send(ours, run, sent)
    message, received = protocol.receive(theirs, protocol.from_above)

    assert message == run
    assert isinstance(message.then, Then)
    for original, copy in zip(sent, received, strict=True):
        assert os.path.sameopenfile(original, copy)
        assert not os.get_inheritable(copy)
        os.close(copy)
    assert open_descriptors() == before
    for pipe in pipes:
        for end in pipe:
            os.close(end)


def test_the_end_of_the_peer_is_the_end_of_the_file(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    ours.close()

    with pytest.raises(EOFError):
        protocol.receive(theirs, protocol.from_above)
    with pytest.raises(EOFError):
        hearing.receive_from_init(theirs)


def send_raw(channel: socket.socket, content: bytes, descriptors: list[int]) -> None:
    rights = array.array("i", descriptors)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
    channel.sendmsg([content], ancillary)


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 100, 253])
@pytest.mark.parametrize("content", [b"", b"m", b"i", b'i["Ready"]', b"x", b"i" + b"y" * 70_000])
def test_descriptors_that_nobody_asked_for_are_closed(
    count: int, content: bytes, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    null = os.open("/dev/null", os.O_RDONLY)
    before = open_descriptors()

    send_raw(ours, content, [null] * count)
    try:
        hearing.receive_from_init(theirs)
    except (EOFError, OSError, protocol.BadMessage):
        pass
    send_raw(ours, content, [null] * count)
    try:
        _, received = protocol.receive(theirs, hearing.from_launcher)
    except (EOFError, OSError, protocol.BadMessage):
        received = []

    for descriptor in received:
        os.close(descriptor)
    assert open_descriptors() == before
    os.close(null)


@pytest.mark.parametrize("size", [0, protocol.MESSAGE_BYTES + 1, 2**40])
@pytest.mark.attack(15)
def test_a_memfd_of_no_or_absurd_size_is_refused(
    size: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = ends
    before = open_descriptors()
    memory = os.memfd_create("message")
    os.truncate(memory, size)
    send_raw(ours, b"m", [memory])
    os.close(memory)

    with pytest.raises(protocol.BadMessage):
        protocol.receive(theirs, protocol.from_above)
    assert open_descriptors() == before


@pytest.mark.attack(15)
def test_init_may_not_send_a_memfd(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    protocol.send(ours, protocol.Failed(step="s", reason="r" * 2**17))

    with pytest.raises(protocol.BadMessage):
        hearing.receive_from_init(theirs)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["Ready", "Failed", "Started", "NotStarted", "Exited", "NotPlaced", "Done", "Run"]
    ),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
packets = st.binary(max_size=200) | st.builds(
    lambda start, body: start + json.dumps(body).encode(),
    st.sampled_from([b"i", b"m", b""]),
    json_like,
)


@settings(max_examples=500, deadline=None, database=None)
@given(packets)
@pytest.mark.attack(15)
def test_whatever_init_sends_is_a_message_or_one_of_the_documented_errors(packet: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        ours.send(packet)
        try:
            message, _ = hearing.receive_from_init(theirs)
        except (EOFError, OSError, protocol.BadMessage):
            return
        assert isinstance(message, protocol.FromInit)
        # It can be written down in any store and any JSON.
        assert msgspec.json.decode(msgspec.json.encode(message)) is not None


@settings(max_examples=300, deadline=None, database=None)
@given(packets, st.integers(0, 3))
def test_whatever_the_launcher_sends_is_a_message_or_one_of_the_documented_errors(
    packet: bytes, count: int
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = open_descriptors()
    with ours, theirs:
        theirs.setblocking(False)
        send_raw(ours, packet, [0] * count)
        received: list[int] = []
        try:
            _, received = protocol.receive(theirs, hearing.from_launcher)
        except (EOFError, OSError, protocol.BadMessage):
            pass
        for descriptor in received:
            os.close(descriptor)
        assert open_descriptors() == before


@pytest.mark.parametrize(
    "change",
    [
        {"at": math.nan},
        {"at": math.inf},
        {"at": -1.0},
        {"code": 256},
        {"code": -1},
        {"code": 2**64 - 1},
        {"signal": 0},
        {"signal": 65},
        {"cpu_user_seconds": math.nan},
        {"cpu_system_seconds": math.inf},
        {"max_rss_bytes": -1},
        {"max_rss_bytes": 2**64 - 1},
    ],
)
def test_an_end_in_impossible_figures_is_no_message(
    change: dict[str, Any], ends: tuple[socket.socket, socket.socket]
) -> None:
    """They would end up in the job's record, which a store may refuse: the job would never end."""
    ours, theirs = ends
    protocol.send(ours, protocol.Exited(command=1, exit=Exit(**{**EXITED, **change})))

    with pytest.raises(protocol.BadMessage):
        hearing.receive_from_init(theirs)


class Impostor:
    """A process of the test in the place of init: the service's side of one sandbox, and init's end of its socket."""

    def __init__(self) -> None:
        service_end, self.channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, self.life = os.pipe()
        self.pid = os.posix_spawn(
            "/bin/cat", ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)]
        )
        os.close(reading)
        self.sandbox = Sandbox(SPEC, self.pid, service_end, os.pidfd_open(self.pid))

    async def ended(self) -> None:
        await self.sandbox.dead()
        os.waitpid(self.pid, 0)  # noqa: ASYNC222 (it is dead)
        os.close(self.life)
        self.channel.close()


@pytest.mark.attack(15)
def test_an_init_that_floods_the_service_is_killed(bench: Bench) -> None:
    async def flood() -> int:
        impostor = Impostor()
        sent = 0
        impostor.channel.settimeout(0)
        while impostor.sandbox.alive and sent < 100_000:
            try:
                protocol.send(impostor.channel, protocol.Failed(step="s", reason="r" * 900))
                sent += 1
            except OSError:
                pass
            await asyncio.sleep(0)
        await impostor.ended()
        return impostor.sandbox._answers.qsize()

    assert bench.do(flood()) <= 10


@pytest.mark.parametrize("packet", [b"nonsense", b"i]", b"m", b"i" + b"x" * 70_000])
@pytest.mark.attack(15)
def test_an_init_that_speaks_nonsense_is_killed(packet: bytes, bench: Bench) -> None:
    async def speak() -> Any:
        impostor = Impostor()
        impostor.channel.send(packet)
        try:
            await impostor.sandbox.work(protocol.Empty(), [])
        except SandboxFailed as error:
            return error
        finally:
            await impostor.ended()

    assert isinstance(bench.do(speak()), SandboxFailed)
