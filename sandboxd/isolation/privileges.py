"""Giving up privilege: parent-death signal, no_new_privs, dumpability, securebits, capabilities and resource limits.

The only module that uses python-prctl (prctl(2), capabilities(7)). What it would take hundreds of steps for in each init is called
directly.
"""

import os
import resource
import signal

import prctl

from sandboxd.isolation import syscalls


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the parent dies. Kernel: cleared by each change of ids, so it is set again after one.

    `parent_pid` closes the race in which the parent died before the call; 0 when the parent is outside this pid
    namespace and cannot be named.
    """
    prctl.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def set_name(name: str) -> None:
    """What `comm` shows of this process (up to 15 bytes); otherwise the number of the descriptor it was started from."""
    prctl.set_name(name)


def lock_securebits() -> None:
    """Root (uid 0) gets no capabilities by being root, and nobody can change that any more."""
    bits = (
        prctl.SECBIT_NOROOT
        | prctl.SECBIT_NOROOT_LOCKED
        | prctl.SECBIT_NO_SETUID_FIXUP
        | prctl.SECBIT_NO_SETUID_FIXUP_LOCKED
        | prctl.SECBIT_KEEP_CAPS_LOCKED
    )
    prctl.set_securebits(bits)


def drop_bounding_set() -> None:
    """Empty the capability bounding set."""
    syscalls.drop_from_bounding_set(prctl.CAP_LAST_CAP)


def drop_capabilities(keep: frozenset[str] = frozenset()) -> None:
    """Clear permitted, effective, inheritable and (with them) ambient capabilities but for `keep`."""
    kept = 0
    for name in keep:
        kept |= 1 << getattr(prctl, f"CAP_{name.upper()}")
    syscalls.capset(kept)


def forbid_new_privileges() -> None:
    """no_new_privs: no exec grants more than this process has, set-id bits or not."""
    prctl.set_no_new_privs(1)


def forbid_dumps() -> None:
    """Not dumpable: same-uid processes can neither trace this one nor read what /proc says of it."""
    prctl.set_dumpable(0)


def limit(kind: int, wish: int) -> None:
    """Set a resource limit (RLIMIT_*), soft and hard, to `wish`, or to the hard limit where that is lower (getrlimit(2))."""
    hard = resource.getrlimit(kind)[1]
    value = wish if hard == resource.RLIM_INFINITY else min(wish, hard)
    resource.setrlimit(kind, (value, value))
