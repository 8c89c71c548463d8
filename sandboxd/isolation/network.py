"""The network of a sandbox: by default a loopback interface and nothing else. See netdevice(7), network_namespaces(7)."""

import fcntl
import os
import signal
import socket
import struct

from sandboxd.isolation import syscalls

RESOLVER = ("127.0.0.1", 53)
"""Where a sandbox with egress asks for names: a socket in its namespace that the service has."""

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_LO_UP = struct.pack("16sh22x", b"lo", _IFF_UP)
"""struct ifreq. Of the flags that can be set this one is all that a loopback has; the others are the device's own."""
_IP_FREEBIND = 15
_NETLINK_NETFILTER = 12
_NFTABLES_EVENTS = 1 << 6
"""The group NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h). Only who may set rules may hear of them."""


def bring_up_loopback() -> None:
    """Set `lo` up in the current network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, _LO_UP)


def lend(pid: int, pidfd: int, home: int) -> list[int]:
    """Descriptors of the network namespace of a process, and of two sockets in it, for the service: the resolver's, and one
    that hears what the firewall tells.

    Called by the launcher of a sandbox that it has just cloned; `home` is the launcher's own namespace. Raises OSError.
    """
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        signal.pidfd_send_signal(pidfd, 0)  # It lives, so the number was its own.
        return [namespace, *_bind_sockets(namespace, home)]
    except OSError:
        os.close(namespace)
        raise


def _bind_sockets(namespace: int, home: int) -> list[int]:
    datagrams = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    syscalls.setns(namespace, syscalls.CLONE_NEWNET)
    try:
        with (
            socket.socket(socket.AF_INET, datagrams) as resolver,
            socket.socket(socket.AF_NETLINK, datagrams, _NETLINK_NETFILTER) as firewall,
        ):
            # Its init may not have set `lo` up yet: until then the address is nobody's.
            resolver.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            resolver.bind(RESOLVER)
            firewall.bind((0, _NFTABLES_EVENTS))
            return [resolver.detach(), firewall.detach()]
    finally:
        go_home(home)


def go_home(home: int) -> None:
    """Back to the launcher's own namespace. Where that fails the launcher ends, and with it every sandbox."""
    try:
        syscalls.setns(home, syscalls.CLONE_NEWNET)
    except OSError as error:
        raise RuntimeError("the launcher does not get out of a sandbox's network") from error
