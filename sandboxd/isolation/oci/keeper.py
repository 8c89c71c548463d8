"""keeper: PID 1 of a sandbox whose commands are started by an OCI runtime. See the package's theory of operation.

It is a clone of the launcher, like init, and speaks to the service like init. It stays root in U1 for as long as it has to start
commands, out of their reach: they are in U2, which does not have its uid.
"""

import errno
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, NoReturn

from sandboxd.errors import SandboxFailed
from sandboxd.isolation import files, init, mounts, privileges, protocol, syscalls
from sandboxd.isolation.oci import config, root, tracing
from sandboxd.isolation.sandbox_ids import inside_to_launcher
from sandboxd.isolation.spec import OciRuntime, Then, Unusable

LEAVE_CGROUPS_ALONE = {
    "runc": ("--rootless=true",),
    "crun": ("--cgroup-manager=disabled",),
    "runsc": ("--ignore-cgroups", "--network=none"),
}
"""By the program's name. The sandbox is in its cgroup, and in its network, before the runtime starts."""

_LOG = f"{root.BUNDLE}/log"
PID_FILE = f"{root.BUNDLE}/pid"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_LONGEST_REASON = 500

Ended = tuple[int, int, resource.struct_rusage]


def main(order: init.Order, channel: socket.socket, mapper: socket.socket) -> NoReturn:
    """Life of the keeper. It never returns."""
    init.live(Keeper(order, channel, mapper))


class Keeper(init.Init):
    """One sandbox with an OCI runtime, seen from inside."""

    own_kernel = False
    """Whether the runtime brings a kernel for its commands."""

    def __init__(self, order: init.Order, channel: socket.socket, mapper: socket.socket) -> None:
        super().__init__(order, channel, mapper)
        if order.spec.runtime is None or not order.id_count:
            raise SandboxFailed("runtime", "an OCI runtime needs subordinate ids")
        self.runtime: OciRuntime = order.spec.runtime
        self.ended: list[Ended] = []
        """Children that were waited for while another was meant, to be reaped in their turn."""
        self.held: set[int] = set()
        """Numbers of the commands that wait for `Go`."""

    def steps(self) -> list[Callable[[], None]]:
        return [
            self.leave_launcher,
            self.join_cgroups,
            self.mount_own,
            self.mount_file_system,
            self.bring_up_network,
            self.set_hostname,
            self.mount_runtime_root,
            self.change_root,
            self.keep_to_itself,
        ]

    def mount_runtime_root(self) -> None:
        root.build(self.order.templates, self.runtime.path)

    def change_root(self) -> None:
        mounts.enter_root(f"{self.order.templates.stage}/runtime")

    def keep_to_itself(self) -> None:
        """The launcher writes no maps here: the runtime does. And nothing below gets more rights than this process has."""
        self.mapper.close()
        privileges.forbid_new_privileges()
        privileges.forbid_dumps()

    # Commands

    def run(self, request: protocol.Run, descriptors: list[int]) -> None:
        """Have a command started, and let it go when the service has set its limits."""
        if request.terminal is not None:
            self.tell_not_started(request, Unusable("terminal", errno.EOPNOTSUPP))
            return
        path = tracing.rehearse(request.command, self.become_command)
        if isinstance(path, Unusable):
            self.tell_not_started(request, path)
            return
        try:
            pid = self.load(request, path, descriptors)
        except (OSError, SandboxFailed, ValueError) as error:
            kind = "" if isinstance(error, SandboxFailed) else f"{type(error).__name__}: "
            reason = f"{kind}{error}"[:_LONGEST_REASON]
            step = f"runtime {self.runtime.name}"
            protocol.send(self.channel, protocol.NotLoaded(request.number, step, reason))
            self.over = True
            return
        self.held.add(request.number)
        protocol.send(self.channel, protocol.Loaded(request.number))
        while request.number in self.held:
            self.obey()
        before = time.monotonic()
        self.begin(request, pid)
        protocol.send(self.channel, protocol.Started(request.number, before))
        self.running[pid] = (request.number, request.then)

    def begin(self, request: protocol.Run, pid: int) -> None:
        """Its limits are set: let the command go."""
        tracing.let_go(pid)
        if request.then is Then.END:
            self.give_up_privileges()

    def let_go(self, request: protocol.Go) -> None:
        self.held.discard(request.command)

    def load(self, request: protocol.Run, path: str, descriptors: list[int]) -> int:
        """Have the runtime make a container and start it. Returns the pid of the command, held after its execve.

        Raises OSError, SandboxFailed, ValueError.
        """
        pid = self.create(request, path, descriptors)
        tracing.seize(pid)
        self.forbid_namespaces_of(pid)
        self.start(name_of(request.number), pid)
        return pid

    def create(self, request: protocol.Run, path: str, descriptors: list[int]) -> int:
        """Have the runtime make a container. Returns its pid. Raises OSError, SandboxFailed, ValueError."""
        self.write_config(request, path)
        name = name_of(request.number)
        self.call(
            "create", "--bundle", root.BUNDLE, "--pid-file", PID_FILE, name, streams=descriptors
        )
        with open(PID_FILE, encoding="ascii") as file:
            return int(file.read())

    def write_config(self, request: protocol.Run, path: str) -> None:
        command, argv = request.command, request.command.argv
        if "PATH" not in command.env or not path.startswith("/"):
            # What the runtime would look for by itself is not always what execvp(3) finds.
            argv = (path, *argv[1:])
        text = config.config_text(
            self.spec,
            command,
            argv,
            tree=root.TREE,
            id_count=self.order.id_count,
            rlimits=init.SHARED_QUOTAS,
            machine=syscalls.MACHINE,
            own_kernel=self.own_kernel,
        )
        with open(f"{root.BUNDLE}/config.json", "w", encoding="utf-8") as file:
            file.write(text)

    def call(self, *words: str, streams: list[int]) -> None:
        """Run the runtime to its end. Raises SandboxFailed with what it says went wrong."""
        pid = self.spawn(*words, streams=streams)
        while True:
            ended = os.wait4(-1, syscalls.WAIT_ALL)
            if ended[0] == pid:
                break
            self.ended.append(ended)
        self.check(words[0], ended[1])

    def spawn(self, *words: str, streams: list[int]) -> int:
        program = self.runtime.path
        common = [*LEAVE_CGROUPS_ALONE.get(os.path.basename(program), ()), *self.runtime.args]
        common += ["--root", root.STATE, "--log", _LOG, "--log-format", "json"]
        syscalls.close_range(3, flags=syscalls.CLOSE_RANGE_CLOEXEC)
        return os.posix_spawn(
            program,
            [program, *common, *words],
            _ENVIRONMENT,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)],
            setsigmask=(),
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )

    def start(self, name: str, pid: int) -> None:
        """`start`, until that has ended and the command has stopped after its execve."""
        starter = self.spawn("start", name, streams=[])
        waiting = {starter, pid}
        while waiting:
            ended = os.wait4(-1, syscalls.WAIT_ALL)
            which, status, _ = ended
            if which == starter:
                self.check("start", status)
                waiting.discard(starter)
            elif which != pid:
                self.ended.append(ended)
            elif tracing.stopped_at_exec(pid, status):
                waiting.discard(pid)
            elif not os.WIFSTOPPED(status):
                raise SandboxFailed("start", self.last_words() or "it ended before the command")

    def check(self, action: str, status: int) -> None:
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise SandboxFailed(action, self.last_words() or f"exit status {code}")

    def last_words(self) -> str:
        """The last message in the runtime's log."""
        try:
            with open(_LOG, encoding="utf-8", errors="replace") as log:
                lines = [line for line in log.read().splitlines() if line.strip()]
            return str(json.loads(lines[-1])["msg"])
        except (OSError, ValueError, LookupError, TypeError):
            return ""

    def forbid_namespaces_of(self, pid: int) -> None:
        """As `forbid_more_namespaces`, which the runtime does not know: the limits of U2, written from inside it."""

        def write() -> None:
            namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
            init.write_namespace_limits(os.open("/proc", os.O_PATH | os.O_CLOEXEC))

        self.in_child("forbid_more_namespaces", write)

    def become_command(self) -> None:
        """For a child: the root, the user and the rights that a command has. The ids are those of U1."""
        os.chroot(root.TREE)
        os.chdir("/")
        privileges.lock_securebits()
        uid, gid, *groups = (
            inside_to_launcher(number, self.order.id_count)
            for number in (self.spec.uid, self.spec.gid, *self.spec.groups)
        )
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        privileges.drop_capabilities()

    def in_child(self, step: str, work: Callable[[], None]) -> None:
        """Do something that this process must not become. Raises SandboxFailed."""
        pid = os.fork()
        if pid == 0:
            status = 255
            try:
                work()
                status = 0
            except OSError as error:
                status = min(error.errno or 255, 255)
            finally:
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise SandboxFailed(step, os.strerror(code) if code > 0 else f"signal {-code}")

    def move_files(self, request: protocol.Place | protocol.Collect, descriptor: int) -> None:
        """In the tree, as the command's user: never with this process's own rights."""

        def move() -> None:
            self.become_command()
            protocol.send(self.channel, files.carry_out(request, descriptor))

        self.in_child("files", move)

    def give_up_privileges(self) -> None:
        """What is left to do is to pass on signals, to another user."""
        privileges.lock_securebits()
        privileges.drop_bounding_set()
        privileges.drop_capabilities(frozenset({"kill"}))
        self.filter_system_calls()

    def wait(self) -> tuple[int, int, Any]:
        if self.ended:
            return self.ended.pop(0)
        return super().wait()


def name_of(number: int) -> str:
    """What a command's container is called."""
    return f"command-{number}"
