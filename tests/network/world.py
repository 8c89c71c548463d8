"""A small internet of the test's own: a user namespace with two network namespaces, made by an ordinary user.

    service's host (203.0.113.2, 2001:db8::2) ──veth── outside (every other address, the name server)

`python world.py` makes it, prints its pid, and lives until its input ends; `python world.py PID COMMAND…` runs a command in the service's
half, as the same user and with no more than the capabilities that map subordinate ids (as in a pod with `hostUsers: false`).

Ids are mapped to themselves, so that the service's account and its subordinate ids are inside what they are outside.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import prctl

from sandboxd.isolation import idmap

HOST, HOST6 = "203.0.113.2", "2001:db8::2"
OUTSIDE = ["203.0.113.1", "203.0.113.7", "203.0.113.8", "203.0.113.53", "198.51.100.7"]
OUTSIDE6 = ["2001:db8::1", "2001:db8::7", "2001:db8::8"]
CLOSED = [
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.168.1.1",
    "198.18.0.1",
]
CLOSED6 = ["fd00:ec2::254", "fc00::7", "64:ff9b::a01:203", "2002:a01:203::1"]
"""Every one of them answers, if it is reached."""
HELLO_PORTS = (80, 443, 5432)
STREAM_PORT = 9000
"""Sends as many bytes as the first line asks for."""
LOOPBACK_PORT = 7777
ABSTRACT_NAME = "\0sandboxd-test-world"
NAMES = {
    "allowed.test": ["203.0.113.7", "2001:db8::7"],
    "other.test": ["203.0.113.8", "2001:db8::8"],
    "inside.test": ["10.1.2.3", "fd00:ec2::254"],
    "loopback.test": ["127.0.0.1", "::1"],
    "host.test": [HOST, HOST6],
    "mixed.test": ["10.1.2.3", "203.0.113.7"],
    "one.below.test": ["203.0.113.8"],
}

_NEWNS, _NEWUSER, _NEWNET = 0x20000, 0x10000000, 0x40000000
_MS_PRIVATE, _MS_BIND = 0x44000, 0x1000
_servers: list[asyncio.Server] = []
_libc = ctypes.CDLL(None, use_errno=True)


def make() -> None:
    """Become the service's half, with the outside as a child; tell the pid and wait for the end."""
    _map_ids_to_themselves()
    _keep_capabilities(prctl.ALL_CAPS)
    _call(_libc.unshare, _NEWNET | _NEWNS)
    outside, left = socket.socketpair(), os.getpid()
    outside_pid = _child(_be_outside, outside[1], left)
    outside[0].recv(1)
    _ip(f"link add up0 type veth peer name down0 netns {outside_pid}")
    for words in (
        "link set lo up",
        f"addr add {HOST}/24 dev up0",
        f"addr add {HOST6}/64 dev up0 nodad",
        "link set up0 up",
        "route add default via 203.0.113.1",
        "-6 route add default via 2001:db8::1",
    ):
        _ip(words)
    outside[0].send(b"l")
    outside[0].recv(1)
    _name_server_is(OUTSIDE[3])
    _child(_be_on_the_host, outside[1], left)
    outside[0].recv(1)
    print(json.dumps({"pid": os.getpid()}), flush=True)
    sys.stdin.read()


def enter(pid: int, command: list[str]) -> NoReturn:
    """Run a command in the service's half."""
    spaces = [
        (os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), kind)
        for name, kind in (("user", _NEWUSER), ("net", _NEWNET), ("mnt", _NEWNS))
    ]
    here = os.getcwd()
    for descriptor, kind in spaces:
        _call(_libc.setns, descriptor, kind)
    os.chdir(here)
    _keep_capabilities([prctl.CAP_SETUID, prctl.CAP_SETGID])
    os.execvp(command[0], command)  # noqa: S606 (in place of this process)


def _map_ids_to_themselves() -> None:
    ids = idmap.find_range()
    assert ids is not None, "no subordinate ids (sandboxd setup)"
    us, helper = socket.socketpair()
    pid = os.getpid()
    mapper = os.fork()
    if mapper == 0:
        helper.recv(1)
        for tool, own, first in (
            ("newuidmap", os.getuid(), ids.first_uid),
            ("newgidmap", os.getgid(), ids.first_gid),
        ):
            words = [own, own, 1, first, first, ids.size]
            subprocess.run([tool, str(pid), *map(str, words)], check=True)
        os._exit(0)
    _call(_libc.unshare, _NEWUSER)
    us.send(b"u")
    _, status = os.waitpid(mapper, 0)
    assert status == 0, "the ids could not be mapped"


def _keep_capabilities(kept: list[int]) -> None:
    """Make these survive an exec although our id is not 0 (ambient, capabilities(7)), and drop the others."""
    kept = [capability for capability in kept if prctl.capbset_read(capability)]
    others = [capability for capability in prctl.ALL_CAPS if capability not in kept]
    prctl.set_caps((others, prctl.ALL_FLAGS, False), (kept, prctl.CAP_INHERITABLE, True))
    for capability in kept:
        raised = map(ctypes.c_ulong, (2, capability, 0, 0))  # PR_CAP_AMBIENT_RAISE
        _call(_libc.prctl, 47, *raised)  # PR_CAP_AMBIENT


def _child(life: Any, channel: socket.socket, parent: int) -> int:
    """A process that dies with this one."""
    pid = os.fork()
    if pid == 0:
        prctl.set_pdeathsig(signal.SIGKILL)
        if os.getppid() == parent:
            life(channel)
        os._exit(1)
    return pid


def _be_outside(channel: socket.socket) -> None:
    _call(_libc.unshare, _NEWNET)
    channel.send(b"n")
    channel.recv(1)
    _ip("link set lo up")
    _ip("link set down0 up")
    _ip("addr add 203.0.113.1/24 dev down0")
    _ip("addr add 2001:db8::1/64 dev down0 nodad")
    for address in {*OUTSIDE, *CLOSED} - {"203.0.113.1"}:
        _ip(f"addr add {address}/32 dev down0")
    for address in {*OUTSIDE6, *CLOSED6} - {"2001:db8::1"}:
        _ip(f"addr add {address}/128 dev down0 nodad")
    asyncio.run(_serve_outside(channel))


async def _serve_outside(channel: socket.socket) -> None:
    """One process and one thread: a flood of connections is to cost this user nothing else."""
    for port in HELLO_PORTS:
        await _serve_tcp(port, _say_hello)
        _serve_udp("::", port, _echo)
    await _serve_tcp(STREAM_PORT, _send_much)
    _serve_udp(OUTSIDE[3], 53, _tell_address)
    channel.send(b"s")
    await asyncio.Event().wait()


def _be_on_the_host(channel: socket.socket) -> None:
    """What listens beside the service, for nobody but its own host."""
    asyncio.run(_serve_on_the_host(channel))


async def _serve_on_the_host(channel: socket.socket) -> None:
    await _serve_tcp(LOOPBACK_PORT, _say_hello)
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(ABSTRACT_NAME)
    abstract.listen()
    channel.send(b"h")
    await asyncio.Event().wait()


async def _serve_tcp(port: int, answer: Any) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await answer(reader, writer)
        writer.close()

    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    _servers.append(await asyncio.start_server(converse, sock=listener))


def _serve_udp(host: str, port: int, answer: Any) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.setsockopt(socket.IPPROTO_IPV6, 49, 1)  # IPV6_RECVPKTINFO: answer as whom was asked
    bound.bind((host, port))

    def serve() -> None:
        piece, extra, _, sender = bound.recvmsg(65_536, 1024)
        with contextlib.suppress(OSError):
            bound.sendmsg([answer(piece)], extra, 0, sender)

    asyncio.get_running_loop().add_reader(bound, serve)


async def _say_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    address = writer.get_extra_info("sockname")[0].removeprefix("::ffff:")
    writer.write(f"hello from {address}\n".encode())
    writer.write_eof()
    while await reader.read(65_536):
        pass


async def _send_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    left = int(await reader.read(100))
    piece = bytes(65_536)
    while left > 0:
        writer.write(piece[:left])
        left -= len(piece[:left])
        await writer.drain()


def _echo(piece: bytes) -> bytes:
    return piece


def _tell_address(piece: bytes) -> bytes:
    question = dns.message.from_wire(piece)
    answer = dns.message.make_response(question)
    asked = question.question[0]
    found = NAMES.get(asked.name.to_text(omit_final_dot=True).lower())
    if found is None:
        answer.set_rcode(dns.rcode.NXDOMAIN)
    wanted = ":" if asked.rdtype == dns.rdatatype.AAAA else "."
    texts = [address for address in found or [] if wanted in address]
    if texts:
        answer.answer.append(dns.rrset.from_text(asked.name, 300, "IN", asked.rdtype, *texts))
    return answer.to_wire()


def _name_server_is(address: str) -> None:
    """In this mount namespace alone."""
    _call(_libc.mount, None, b"/", None, ctypes.c_ulong(_MS_PRIVATE), None)
    target = os.path.realpath("/etc/resolv.conf")
    if not os.path.exists(target):
        return
    path = Path(f"/var/tmp/sandboxd-test-resolver-{os.getpid()}")
    path.write_text(f"nameserver {address}\n")
    _call(_libc.mount, os.fsencode(path), os.fsencode(target), None, ctypes.c_ulong(_MS_BIND), None)
    path.unlink()


def _ip(words: str) -> None:
    subprocess.run(["/usr/sbin/ip", *words.split()], check=True, stdin=subprocess.DEVNULL)


def _call(function: Any, *arguments: Any) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        enter(int(sys.argv[1]), sys.argv[2:])
    make()
