"""launcher: root of a user namespace of its own (U1). Clones sandboxes, writes their maps, reaps. Nothing else.

It is started by `launcher_client.Launcher` with an empty environment and one descriptor, and dies with the service. It is single-threaded
and imports everything that init will need, because init cannot import once its root has changed.
"""

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
from typing import NoReturn

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import (
    clocks,
    init,
    machine,
    mounts,
    network,
    privileges,
    protocol,
    sandbox_ids,
    seccomp,
    syscalls,
)
from sandboxd.isolation.spec import NetworkMode

_SANDBOX_NAMESPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
)
"""And, made by init, a cgroup namespace (once it is in its cgroup) and, where it can be had, one of time."""
_USER_BYTES = 32
"""Two numbers of 32 bits."""
_DEATH_MS = 100
"""From a SIGKILL until the sockets of who got it are closed, and much more."""
NAMESPACE_NAMES = ("user", "mount", "pid", "net", "ipc", "uts", "cgroup")


def main(control_fd: int, parent_pid: int, stage: str, counted: bool) -> NoReturn:
    """Life of the launcher. `stage` is an existing directory that it may mount over, in its own mount namespace.

    `counted`: a cgroup limits the memory of what runs in sandboxes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the service.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel reaps: nobody asks for a status.
    privileges.die_with_parent(parent_pid)
    init.close_all_but(control_fd)  # Not even the program that this process was started from.
    privileges.set_name("sandboxd")
    # Descriptors under way in sockets are counted by uid: with a single-id map those of commands are, too. Only a higher
    # limit than theirs lets this process go on sending.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    launcher = LauncherProcess(socket.socket(fileno=control_fd), parent_pid, counted)
    with contextlib.suppress(EOFError, ConnectionError):  # The service is gone: so is the launcher.
        launcher.enter_user_namespace()
        launcher.prepare(stage)
        launcher.serve()
    os._exit(0)


class LauncherProcess:
    """The launcher's own state: its control socket and the sandboxes that wait for their maps."""

    def __init__(self, control: socket.socket, parent_pid: int, counted: bool) -> None:
        self.control = control
        self.parent_pid = parent_pid
        self.poll = select.poll()
        self.waiting_for_maps: dict[int, tuple[socket.socket, int]] = {}
        """Descriptor to our end of the socket by which an init asks for its maps, and its pid."""
        self.id_count = 0
        program = seccomp.assemble(seccomp.build(syscalls.MACHINE, counted=counted))
        self.seccomp_program = syscalls.FilterProgram(program)

    def enter_user_namespace(self) -> None:
        """U1. The service writes the maps: only it is outside."""
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        protocol.send(self.control, protocol.Unshared())
        answer, _ = protocol.receive(self.control, protocol.from_above)
        if not isinstance(answer, protocol.MapYourself):
            raise SandboxFailed("map launcher", "the service did not map it")
        self.id_count = answer.id_count
        # The maps give this process the capabilities of root in U1 only with the ids of root.
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        if self.id_count:
            os.setgroups([])
        privileges.die_with_parent(self.parent_pid)
        self.title = syscalls.find_title()
        syscalls.set_title(self.title, "sandboxd: launcher")

    def prepare(self, stage: str) -> None:
        """Everything that can be done once for all sandboxes."""
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC)
        syscalls.mount_propagation("/", syscalls.MS_REC | syscalls.MS_SLAVE)
        self.own_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.templates = mounts.make_templates(stage)
        self.cpus = machine.read_cpus()
        self.own_clocks = clocks.offered()
        self.poll.register(self.control, select.POLLIN)
        protocol.send(self.control, protocol.LauncherReady(own_clocks=self.own_clocks))
        # What is frozen is not touched by a collection: the pages stay shared with every init.
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        """Until the service closes its end."""
        while True:
            for descriptor, _ in self.poll.poll():
                if descriptor == self.control.fileno():
                    try:
                        request, descriptors = protocol.receive(self.control, protocol.from_above)
                    except EOFError:
                        return
                    if isinstance(request, protocol.Create):
                        self.create(request, descriptors)
                else:
                    self.map_sandbox(descriptor)

    def create(self, request: protocol.Create, descriptors: list[int]) -> None:
        """Clone one sandbox; its init reports to the service by a socket of its own."""
        enter = init.main
        if request.spec.runtime is not None:
            # Only here, where an OCI runtime is used: what is imported is copied into every sandbox.
            from sandboxd.isolation.oci import gvisor, keeper

            enter = gvisor.main if request.spec.runtime.own_kernel else keeper.main
        service_end, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mapper_end, mapper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            cgroup_fd = descriptors[0] if request.into_cgroup else None
            pid, pidfd = syscalls.clone3(_SANDBOX_NAMESPACES, cgroup_fd)
        except OSError as error:
            failed = protocol.CreateFailed(number=request.number, step="clone3", reason=str(error))
            protocol.send(self.control, failed)
            mapper_end.close()
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if pid == 0:
            gc.disable()  # A collection would write to every page that is still shared with the launcher.
            order = init.Order(
                request.spec,
                self.templates,
                self.id_count,
                request.join_files,
                request.show_cgroup,
                self.seccomp_program,
                self.title,
                self.cpus,
                self.own_clocks,
            )
            enter(order, channel, mapper)
        created = protocol.Created(number=request.number, pid=pid)
        lent: list[int] = []
        try:
            if request.spec.network is NetworkMode.EGRESS:
                lent = network.lend(pid, pidfd, self.own_network)
            protocol.send(self.control, created, [service_end.fileno(), pidfd, *lent])
        except OSError as error:
            # Nobody has init's socket now: it sees the end of it and leaves.
            failed = protocol.CreateFailed(number=request.number, step="send", reason=str(error))
            protocol.send(self.control, failed)
        for descriptor in (pidfd, *lent):
            os.close(descriptor)
        for end in (service_end, channel, mapper):
            end.close()
        self.waiting_for_maps[mapper_end.fileno()] = (mapper_end, pid)
        self.poll.register(mapper_end, select.POLLIN)

    def map_sandbox(self, descriptor: int) -> None:
        """init is in U2, and says as which user, or it died on the way there. Closing without an answer makes its step fail.

        It is still what we cloned: whatever it runs later does not have this socket.
        """
        mapper_end, pid = self.waiting_for_maps.pop(descriptor)
        self.poll.unregister(descriptor)
        with mapper_end:
            try:
                if user := mapper_end.recv(_USER_BYTES):
                    uid, gid = map(int, user.split())
                    sandbox_ids.map_sandbox(pid, id_count=self.id_count, uid=uid, gid=gid)
                    mapper_end.send(b"m")
            except (SandboxFailed, ConnectionError, ValueError) as error:
                if not has_ended(mapper_end):
                    print(f"launcher: {error}", file=sys.stderr)


def has_ended(channel: socket.socket) -> bool:
    """Whether who has the other end is gone, or goes just now: somebody killed it, and it is no fault that it has no maps."""
    poll = select.poll()
    poll.register(channel, 0)  # An end is always told of.
    return bool(poll.poll(_DEATH_MS))
