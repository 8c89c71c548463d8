"""System calls made for real from inside: namespaces, families of sockets, terminals, and the entries of other architectures."""

import array
import contextlib
import errno
import fcntl
import json
import os
import platform
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest
from inside import attack, named, program
from sandbox_bench import Bench, start_in

from sandboxd.isolation.sandbox import Process

# Namespaces

NAMESPACES = """
FLAGS = {"user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "net": 0x40000000,
         "ipc": 0x8000000, "uts": 0x4000000, "cgroup": 0x2000000, "time": 0x80}
def forked(name, *arguments):
    wide = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    ctypes.set_errno(0)
    pid = libc.syscall(ctypes.c_long(NUMBERS[name]), *wide)
    if pid == 0: os._exit(0)
    return ctypes.get_errno() if pid < 0 else 0
found = {}
for first in FLAGS:
    for second in FLAGS:
        flags = FLAGS[first] | FLAGS[second]
        for high in (0, 1 << 32, 0xFFFFFFFF << 32):
            if "time" not in (first, second):
                found[f"clone {first} {second} {high:x}"] = forked("clone", high | flags | 17, 0, 0, 0, 0)
            found[f"unshare {first} {second} {high:x}"] = forked("unshare", high | flags)
            size = (ctypes.c_uint64 * 11)(high | flags, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
            found[f"clone3 {first} {second} {high:x}"] = forked("clone3", size, 88)
for name in os.listdir("/proc/self/ns"):
    file = os.open("/proc/self/ns/" + name, os.O_RDONLY)
    for kind in (0, *FLAGS.values()): found[f"setns {name} {kind:x}"] = call("setns", file, kind)
itself = os.pidfd_open(os.getpid())
found["setns by pidfd"] = call("setns", itself, 0x7E020000)
print(json.dumps(found))
"""


@pytest.mark.attack(17, 25)
@pytest.mark.parametrize("uid", [0, 1000])
def test_no_flag_and_no_two_of_any_call_make_or_enter_a_namespace(uid: int, either: Bench) -> None:
    found = attack(either, NAMESPACES, uid=uid, gid=uid)

    answers = {name.split()[0]: set() for name in found}
    for name, answer in found.items():
        answers[name.split()[0]].add(named(answer))
    expected = {name: {"EPERM"} for name in ("clone", "unshare", "setns")}
    assert answers == expected | {"clone3": {"ENOSYS"}}


OWNERS = """
import fcntl
NS_GET_USERNS, NS_GET_PARENT, NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704
found = {}
for name in os.listdir("/proc/self/ns"):
    file = os.open("/proc/self/ns/" + name, os.O_RDONLY)
    for request in (NS_GET_USERNS, NS_GET_PARENT):
        found[f"{name} {request:x}"] = attempt(fcntl.ioctl, file, request)
print(json.dumps(found))
"""


@pytest.mark.attack(25)
def test_no_namespace_leads_to_its_owner_or_its_parent(either: Bench) -> None:
    """A descriptor of U1, or of the host's, would be something to enter."""
    found = attack(either, OWNERS)

    assert len(found) >= 16
    assert {what: answer for what, answer in found.items() if answer == 0} == {}


# Sockets

FAMILIES = """
found = {}
for family in range(46):
    for kind in (1, 2, 3, 4, 5, 10):
        for protocol in (0, 1, 4, 12, 16, 255):
            for high in (0, 1 << 32):
                answer = call("socket", high | family, high | kind, high | protocol)
                if answer != 97: found[f"{family} {kind} {protocol}"] = answer
    answer = call("socketpair", family, 1, 0, (ctypes.c_int * 2)())
    if answer != 97: found[f"pair {family}"] = answer
print(json.dumps(found))
"""
UNIX, INET, INET6, NETLINK = 1, 2, 10, 16


@pytest.mark.attack(24, 26)
@pytest.mark.parametrize("uid", [0, 1000])
def test_no_family_but_four_can_be_had_and_none_of_them_raw(uid: int, bench: Bench) -> None:
    found = attack(bench, FAMILIES, uid=uid, gid=uid)

    assert found.pop("pair 1") == 0
    made = {tuple(map(int, name.split())) for name, answer in found.items() if answer == 0}
    families = {family for family, _, _ in made}
    assert families == {UNIX, INET, INET6, NETLINK}
    assert {protocol for family, _, protocol in made if family == NETLINK} == {0}
    raw = 3
    assert {one for one in made if one[1] == raw and one[0] in (INET, INET6)} == set()
    assert {name for name in found if int(name.split()[0]) not in families} == set()


# Other entries into the kernel

GETPID, SOCKETCALL, EXECVE = 20, 102, 11
SYS_SOCKET, AF_ALG, SOCK_SEQPACKET = 1, 38, 5


def program_of_i386(number: int, first: int, second: int) -> bytes:
    """An ELF file of 32 bits that makes one call and exits with 1: the call was let through."""
    code = b"\xb8" + struct.pack("<I", number)  # mov eax
    code += b"\xbb" + struct.pack("<I", first) + b"\xb9" + struct.pack("<I", second)  # mov ebx, ecx
    code += b"\xcd\x80" + b"\xb8\x01\0\0\0\xbb\x01\0\0\0\xcd\x80"  # int 0x80; exit(1)
    base, header = 0x08048000, 52 + 32
    arguments = struct.pack("<3I", AF_ALG, SOCK_SEQPACKET, 0)
    size = header + len(code) + len(arguments)
    identity = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    fields = (2, 3, 1, base + header, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    elf = identity + struct.pack("<HHIIIIIHHHHHH", *fields)
    segment = struct.pack("<8I", 1, 0, base, base, size, size, 5, 4096)
    return elf + segment + code + arguments


def address_of_arguments() -> int:
    return 0x08048000 + len(program_of_i386(0, 0, 0)) - 12


@pytest.mark.attack(25, 26, 27)
@pytest.mark.parametrize(
    ("number", "first"), [(GETPID, 0), (SOCKETCALL, SYS_SOCKET), (EXECVE, 0), (0xFFFFFFFF, 0)]
)
def test_a_32_bit_program_dies_of_its_first_call(number: int, first: int, bench: Bench) -> None:
    """With socketcall, AF_ALG would be behind a pointer, where no filter sees it."""
    if platform.machine() != "x86_64":
        pytest.skip("x86_64 only")
    compiled = program_of_i386(number, first, address_of_arguments())
    script = "cat > /work/p && chmod +x /work/p && exec /work/p"

    ran = bench.run("sh", "-c", script, stdin=compiled)

    assert ran.exit is not None
    # Where the kernel has no 32-bit programs at all, the shell says so.
    assert ran.exit.signal == signal.SIGSYS or b"Exec format error" in ran.err, ran


@pytest.mark.attack(27)
def test_filters_of_one_s_own_are_refused_and_questions_are_not(bench: Bench) -> None:
    source = """
allow = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000), 8)
class Program(ctypes.Structure): _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = ctypes.byref(Program(1, ctypes.addressof(allow)))
found = [call("seccomp", 1, flags, program) for flags in (0, 1, 2, 8)] + [call("prctl", 22, 2, program)]
log = (ctypes.c_uint32 * 1)(0x7FFC0000)
print(json.dumps([found, call("seccomp", 2, 0, log)]))
"""
    refused, question = attack(bench, source)

    assert set(refused) == {errno.EINVAL}
    assert question == 0


# Terminals

TYPE_INTO_IT = """
import fcntl, termios
typed = ctypes.create_string_buffer(b"x")
found = {}
for name, request in {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C}.items():
    for high in (0, 1, 0x80000000, 0xFFFFFFFF):
        found[f"{name} {high:x}"] = call("ioctl", 0, high << 32 | request, typed)
for force in (0, 1):
    found[f"take it over {force}"] = call("ioctl", 0, termios.TIOCSCTTY, force)
    found[f"TIOCSTI after taking it over {force}"] = call("ioctl", 0, 0x5412, typed)
found["foreground"] = attempt(os.tcsetpgrp, 0, os.getpgrp())
print(json.dumps(found), file=sys.stderr)
"""
HOLD = "import fcntl, os, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); print(1, flush=True); signal.pause()"


@contextlib.contextmanager
def a_terminal_in_use() -> Iterator[int]:
    """The slave of one that controls another session, as that of an operator's shell does."""
    master, slave = pty.openpty()
    words = [sys.executable, "-c", HOLD]
    holder = subprocess.Popen(words, stdin=slave, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"1\n"
        yield slave
    finally:
        holder.kill()
        holder.communicate()
        os.close(master)
        os.close(slave)


def attack_terminal(bench: Bench) -> dict[str, int]:
    """From a command that somebody was so careless to give this terminal. Nothing may have been typed into it."""

    async def run(slave: int) -> bytes:
        read_end, write_end = os.pipe()
        async with bench.sandbox() as made:
            words = ("python3", "-c", program(TYPE_INTO_IT))
            try:
                started = await start_in(made, *words, descriptors=[slave, slave, write_end])
            finally:
                os.close(write_end)
            assert isinstance(started, Process), started
            await started.exited()
        with os.fdopen(read_end, "rb") as answer:
            return answer.read()

    with a_terminal_in_use() as slave:
        found: dict[str, int] = json.loads(bench.do(run(slave)))
        waiting = array.array("i", [0])
        fcntl.ioctl(slave, termios.FIONREAD, waiting)
    assert waiting[0] == 0
    return found


@pytest.mark.attack(20)
def test_a_terminal_of_the_host_cannot_be_typed_into(bench: Bench) -> None:
    found = attack_terminal(bench)

    filtered = {what: named(of) for what, of in found.items() if what.startswith("TIOC")}
    assert len(filtered) == 10
    assert set(filtered.values()) == {"EPERM"}
    assert {what for what, answer in found.items() if answer == 0} == set()


@pytest.mark.attack(20)
def test_the_session_of_its_own_alone_keeps_it_from_typing(unfiltered: Bench) -> None:
    found = attack_terminal(unfiltered)

    assert {what for what, answer in found.items() if answer == 0} == set()
