"""init: PID 1 of one sandbox. Builds the walls, then waits for what it is to run.

It starts as a clone of the launcher (root in U1) and ends up with the rights of the command: nothing that it can do
afterwards is more than the command itself can do. It imports nothing once the root has changed.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from sandboxd.errors import SandboxdError
from sandboxd.isolation import (
    clocks,
    command,
    files,
    machine,
    mounts,
    network,
    privileges,
    protocol,
    scratch,
    syscalls,
)
from sandboxd.isolation.sandbox_ids import inside_to_launcher
from sandboxd.isolation.spec import Command, Exit, Machine, SandboxSpec, Then, Unusable, Used

UNPACKING = frozenset({"chown", "dac_override", "fowner", "fsetid"})
"""What init keeps in a sandbox that is for unpacking an image and runs no command."""

_SIGNALS_CHANGED = (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)
"""What Python and the launcher have set to other than the default. (posix_spawn resets all for the command.)"""
_LONGEST_REASON = 500
SHARED_QUOTAS = {
    "memlock": 2**16,
    # A queue or two: all sandboxes together share what the service's user has, usually 819,200 bytes.
    "msgqueue": 163_840,
    "sigpending": 1024,
}
"""Resource limits that a command has, soft and hard."""
_CORE_BYTES = 1
"""No core fits in a byte; and at exactly 1 the kernel starts no helper for a piped core_pattern, at 0 it does (core(5))."""
_SOON_MS = 30
"""Where commands come sooner, the processors have more to do than to rehearse."""
_STAY_MS = 20
_REAPED_AT_ONCE = 256
_COMMAND_OOM_SCORE = b"1000"
_USER_NAMESPACE_SYSCTLS = {
    "max_user_namespaces": b"0",
    "max_inotify_instances": b"16",
    "max_inotify_watches": b"65536",
}


CarryOut = Callable[[protocol.OnTree, list[int]], protocol.Message]


class Order(NamedTuple):
    """What the launcher hands to the clone."""

    spec: SandboxSpec
    templates: mounts.Templates
    id_count: int
    join_files: tuple[str, ...]
    show_cgroup: bool
    seccomp_program: syscalls.FilterProgram
    title: tuple[int, int]
    """Where the command line lies that the launcher was started with."""
    cpus: dict[int, str]
    """What the host's /proc/cpuinfo says of each CPU."""
    own_clocks: bool


def main(order: Order, channel: socket.socket, mapper: socket.socket) -> NoReturn:
    """Life of init. Never returns: it leaves by `os._exit`, since its interpreter is the launcher's."""
    live(Init(order, channel, mapper))


def live(init: "Init") -> NoReturn:
    """Build, serve, leave."""
    status = 1
    try:
        if init.build():
            init.serve()
            status = 0
    except (EOFError, ConnectionError):
        pass  # The service is gone: so is the sandbox.
    finally:
        os._exit(status)


class Init:
    """One sandbox, seen from inside."""

    def __init__(self, order: Order, channel: socket.socket, mapper: socket.socket) -> None:
        self.order = order
        self.spec = order.spec
        self.channel = channel
        self.mapper = mapper
        self.maps_due = False
        self.oom_score: int | None = None
        self.own_oom_score = b"0"
        """The one that it began with, inherited from the service."""
        self.unmasked_proc: int | None = None
        self.layer: int | None = None
        """What the commands write to, as a mount with nothing above it."""
        self.machine: machine.Files | None = None
        self.carry_out: CarryOut = refuse
        self.running: dict[int, tuple[int, Then]] = {}
        """Process id of each command to its number and what follows it."""
        self.clearing: list[protocol.Exited] = []
        """Commands that are over, to be told of when what they left behind is gone."""
        self.over = False
        self.alone = False
        """At the end: nothing but us is left."""
        self.unreaped = False
        """There may be dead children."""
        self.patience_ms: int | None = _SOON_MS
        """How long to wait for a command before it is rehearsed; None: for ever."""

    def steps(self) -> list[Callable[[], None]]:
        """How the walls are built, in this order."""
        return [
            self.leave_launcher,
            self.load_tools,
            self.join_cgroups,
            self.mount_own,
            self.start_clocks,
            self.show_machine,
            self.bring_up_network,
            self.learn_shape,
            self.mount_file_system,
            self.change_root,
            self.set_hostname,
            self.enter_user_namespace,
            self.limit_shared_quotas,
            self.forbid_more_namespaces,
            self.empty_bounding_set,
            self.become_user,
            self.give_up_privileges,
            self.filter_system_calls,
        ]

    def build(self) -> bool:
        """Build the walls, one named step after the other. A step that fails is reported and ends the sandbox."""
        for step in self.steps():
            try:
                step()
            except (OSError, SandboxdError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
                protocol.send(self.channel, protocol.Failed(step=step.__name__, reason=reason))
                return False
        protocol.send(self.channel, protocol.Ready())
        return True

    # The walls

    def leave_launcher(self) -> None:
        """Nothing of the launcher's stays: descriptors, keyring, session, signals, limits."""
        close_all_but(self.channel.fileno(), self.mapper.fileno())
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for stream in range(3):
            os.dup2(null, stream)
        os.close(null)
        privileges.die_with_parent(0)
        self.set_title("sandboxd: blank" if self.spec.is_blank else "sandboxd: init")
        syscalls.join_new_session_keyring()
        os.setsid()
        for number in _SIGNALS_CHANGED:
            syscalls.reset_signal(number)
        syscalls.block_only(signal.SIGCHLD)
        os.umask(0o022)
        privileges.limit(resource.RLIMIT_CORE, _CORE_BYTES)
        privileges.limit(resource.RLIMIT_RTPRIO, 0)

    def set_title(self, title: str) -> None:
        syscalls.set_title(self.order.title, title)

    def load_tools(self) -> None:
        """Import what only this sandbox needs, while that is possible: every other one would carry its pages."""
        if self.spec.writable_root:
            from sandboxd.isolation import trees

            self.carry_out = trees.carry_out

    def join_cgroups(self) -> None:
        """Before anything expensive: what is built from here on is charged to the sandbox (cgroup v1)."""
        for path in self.order.join_files:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"0")
            finally:
                os.close(descriptor)
        # Its root is the cgroup that this process is in at this moment: nothing above can be seen.
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)

    def mount_own(self) -> None:
        """What commands need, whatever the image is."""
        order = self.order
        if self.spec.writable_root:
            return
        self.unmasked_proc = mounts.make_own(
            order.templates, id_count=order.id_count, show_cgroup=order.show_cgroup
        )
        self.oom_score = os.open(
            "self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC, dir_fd=self.unmasked_proc
        )
        # Below what a privileged process (systemd, for a user's service) last set, nobody but root may go.
        self.own_oom_score = os.read(self.oom_score, 8)

    def start_clocks(self) -> None:
        """For the commands only: a time namespace is entered by children."""
        if self.order.own_clocks and self.unmasked_proc is not None:
            clocks.start_anew(self.unmasked_proc)

    def show_machine(self) -> None:
        """The commands' own, as soon as they have one."""
        if self.unmasked_proc is not None:
            self.machine = machine.Files(self.order.templates, self.order.cpus)

    def bring_up_network(self) -> None:
        network.bring_up_loopback()

    def learn_shape(self) -> None:
        """A blank has none: it waits until somebody asks for one."""
        if not self.spec.is_blank:
            return
        protocol.send(self.channel, protocol.Begun())
        self.rehearse_soon()
        request, _ = protocol.receive(self.channel, protocol.from_above)
        if not isinstance(request, protocol.Shape) or not request.spec.fits_blank:
            raise ValueError("a blank cannot become this")
        self.spec = request.spec
        self.set_title("sandboxd: init")

    def mount_file_system(self) -> None:
        order = self.order
        mounts.build_tree(self.spec, order.templates, id_count=order.id_count)
        if not self.spec.writable_root:
            self.layer = mounts.open_layer(order.templates)
        if self.machine is not None:
            self.machine.give_to(inside_to_launcher(self.spec.uid, order.id_count))

    def change_root(self) -> None:
        mounts.enter_root(f"{self.order.templates.stage}/root")

    def set_hostname(self) -> None:
        syscalls.sethostname(self.spec.hostname)

    def enter_user_namespace(self) -> None:
        """U2. Its maps are written by the launcher, while this process does what needs none: `become_user` waits for them."""
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        self.mapper.send(f"{self.spec.uid} {self.spec.gid}".encode())
        self.maps_due = True

    def limit_shared_quotas(self) -> None:
        """What the kernel also counts for all sandboxes together, with the service's own limit: one must not take it all.

        Not before U2: what its maker may have becomes the limit of all namespaces beside it together (user_namespaces(7) does
        not tell; ucounts.c does).
        """
        for name, value in SHARED_QUOTAS.items():
            privileges.limit(getattr(resource, f"RLIMIT_{name.upper()}"), value)

    def forbid_more_namespaces(self) -> None:
        """A second wall behind the filter: the kernel itself refuses a user namespace below U2."""
        if self.unmasked_proc is None:
            return
        write_namespace_limits(self.unmasked_proc)
        os.close(self.unmasked_proc)

    def empty_bounding_set(self) -> None:
        privileges.lock_securebits()
        privileges.drop_bounding_set()

    def become_user(self) -> None:
        if self.maps_due:
            # They also prove that the launcher still lives.
            if not self.mapper.recv(1):
                raise EOFError
            self.mapper.close()
        if self.order.id_count:
            os.setgroups(self.spec.groups)
        os.setresgid(self.spec.gid, self.spec.gid, self.spec.gid)
        os.setresuid(self.spec.uid, self.spec.uid, self.spec.uid)

    def give_up_privileges(self) -> None:
        privileges.drop_capabilities(UNPACKING if self.spec.writable_root else frozenset())
        privileges.forbid_new_privileges()
        privileges.forbid_dumps()
        privileges.die_with_parent(0)  # Cleared by the change of ids.

    def filter_system_calls(self) -> None:
        syscalls.install_seccomp_filter(self.order.seccomp_program)

    # What it is asked to do

    def serve(self) -> None:
        """Do what the service asks for, and reap whatever dies, until the last command is over; everything goes with us."""
        children = syscalls.signalfd(signal.SIGCHLD)
        poll = select.poll()
        poll.register(children, select.POLLIN)
        poll.register(self.channel, select.POLLIN)
        while not self.over:
            ready = poll.poll(0 if self.unreaped else self.patience_ms)
            if not ready and self.patience_ms is not None:
                self.rehearse()
            for descriptor, _ in ready:
                if descriptor == children:
                    os.read(children, 128)
                    self.unreaped = True
                else:
                    self.obey()
            if self.unreaped and not self.over:
                self.reap()
        if self.alone:
            self.stay()

    def rehearse(self) -> None:
        """Go through a command's start and end once, while this sandbox is parked, or a blank, and nobody waits.

        The pages that this writes to are the launcher's until then, and copied one by one (fork(2)): a fifth of a millisecond.
        """
        self.patience_ms = None
        if self.spec.writable_root or self.spec.runtime is not None:
            return
        channel = self.channel
        ours, self.channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with ours, self.channel:
                wish = Command(argv=("/",), env={"PATH": "/bin"}, workdir="/", rlimits={})
                protocol.send(ours, protocol.Run(0, wish, Then.CLEAR), range(3))
                self.obey()
                usage = resource.getrusage(resource.RUSAGE_SELF)
                self.tell_exited(0, Then.CLEAR, exit_of(0, usage))
        finally:
            self.channel = channel
        self.alone = False

    def rehearse_soon(self) -> None:
        """Unless what is waited for comes before."""
        if not self.is_asked_within(_SOON_MS):
            self.rehearse()

    def stay(self) -> None:
        """Wait for the service to end us, or for a moment: nothing runs here, and taking the sandbox apart keeps a processor busy."""
        self.is_asked_within(_STAY_MS)

    def is_asked_within(self, milliseconds: int) -> bool:
        """Wait for so long at most for something to be asked, or for the service's end."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return bool(poll.poll(milliseconds))

    def obey(self) -> None:
        request, descriptors = protocol.receive(self.channel, protocol.from_above)
        match request:
            case protocol.Run():
                self.run(request, descriptors)
            case protocol.Signal():
                self.pass_on_signal(request)
            case protocol.Go():
                self.let_go(request)
            case protocol.Show():
                self.show(request.machine, request.used)
            case protocol.Changes() | protocol.PackChanges():
                self.tell_changes(request, descriptors[0])
            case protocol.Place() | protocol.Collect():
                self.move_files(request, descriptors[0])
            case protocol.Look() | protocol.Remove() | protocol.Read():
                protocol.send(self.channel, files.answer(request, descriptors))
            case protocol.Unpack() | protocol.Layer() | protocol.Pack() | protocol.Empty():
                protocol.send(self.channel, self.carry_out(request, descriptors))
                self.over = True
        for descriptor in descriptors:
            os.close(descriptor)

    def show(self, shown: Machine | None, used: Used | None = None) -> None:
        """Let the files of the machine say this from now on. None: what they said before."""
        if self.machine is not None:
            with contextlib.suppress(OSError):  # Nothing depends on it.
                self.machine.show(shown, used)

    def run(self, request: protocol.Run, descriptors: list[int]) -> None:
        """Start a command with the three descriptors as its streams, or with a terminal, whose master goes to the service."""
        self.patience_ms = None
        terminal = command.open_terminal(request.terminal) if request.terminal else None
        if isinstance(terminal, Unusable):
            self.tell_not_started(request, terminal)
            return
        master = [terminal.master] if terminal else []
        descriptors.extend(master)  # Closed together.
        self.show(request.command.machine)
        self.set_oom_score(_COMMAND_OOM_SCORE)
        before = time.monotonic()
        started = command.start(request.command, terminal.path if terminal else descriptors)
        self.set_oom_score(self.own_oom_score)
        if isinstance(started, Unusable):
            self.tell_not_started(request, started)
            return
        told = protocol.StartedInTerminal if terminal else protocol.Started
        protocol.send(self.channel, told(request.number, before), master)
        self.running[started] = (request.number, request.then)

    def tell_not_started(self, request: protocol.Run, why: Unusable) -> None:
        protocol.send(self.channel, protocol.NotStarted(request.number, why))
        self.over = request.then is Then.END

    def let_go(self, request: protocol.Go) -> None:
        """Nothing is held back here: the limits were set before the command came."""

    def move_files(self, request: protocol.Place | protocol.Collect, descriptor: int) -> None:
        protocol.send(self.channel, files.carry_out(request, descriptor))

    def tell_changes(
        self, request: protocol.Changes | protocol.PackChanges, descriptor: int
    ) -> None:
        made, writable = mounts.made_in_layer(self.spec), frozenset(self.spec.writable)
        if self.layer is None:
            answer: protocol.Message = protocol.Failed("tell changes", "this sandbox has no layer")
        elif isinstance(request, protocol.Changes):
            answer = scratch.tell_changes(request, self.layer, made, descriptor)
        else:
            answer = scratch.pack_changes(request, self.layer, made, writable, descriptor)
        protocol.send(self.channel, answer)

    def pass_on_signal(self, request: protocol.Signal) -> None:
        for group, (number, _) in self.running.items():
            if number == request.command:
                try:
                    os.killpg(group, request.number)
                except ProcessLookupError:
                    pass  # It has just exited; SIGCHLD is on its way.

    def reap(self) -> None:
        """Collect dead children, and tell of the commands among them; some at a time.

        Processes that fork and die without end are collected no faster than they die: nothing else would ever be done.
        """
        for _ in range(_REAPED_AT_ONCE):
            try:
                pid, status, usage = self.wait()
            except ChildProcessError:
                self.unreaped = False
                self.tell_cleared()
                return
            if pid == 0:
                self.unreaped = False
                return
            if pid in self.running:
                self.tell_exited(*self.running.pop(pid), self.exit_of(status, usage))
                if self.over:
                    return

    def tell_exited(self, number: int, then: Then, how: Exit) -> None:
        """Tell of the end of a command, unless everything else is to be killed first.

        Nothing escapes that by forking: a process that is to die cannot (copy_process() in kernel/fork.c).
        """
        exited = protocol.Exited(number, how._replace(alone=is_alone()))
        if then is Then.CLEAR and not exited.exit.alone:
            self.clearing.append(exited)
            os.kill(-1, signal.SIGKILL)
        else:
            protocol.send(self.channel, exited)
            self.over = then is Then.END
            self.alone = exited.exit.alone

    def tell_cleared(self) -> None:
        """Nothing runs any more: tell of the commands that this was waited for."""
        while self.clearing:
            protocol.send(self.channel, self.clearing.pop())

    def wait(self) -> tuple[int, int, resource.struct_rusage]:
        """One dead child, if there is any. Raises ChildProcessError if there is not even a living one."""
        return os.wait4(-1, os.WNOHANG)

    def exit_of(self, status: int, usage: resource.struct_rusage) -> Exit:
        """How a command of ours ended."""
        return exit_of(status, usage)

    def set_oom_score(self, score: bytes) -> None:
        """The kernel is to kill the command before init, which has to tell of it."""
        if self.oom_score is not None:
            os.pwrite(self.oom_score, score, 0)


def close_all_but(*descriptors: int) -> None:
    """Nothing stays open but the streams and these."""
    lowest = 3
    for descriptor in sorted(descriptors):
        if descriptor > lowest:
            syscalls.close_range(lowest, descriptor - 1)
        lowest = descriptor + 1
    syscalls.close_range(lowest)


def write_namespace_limits(proc_fd: int) -> None:
    """Of the user namespace that this process is in; `proc_fd` is a /proc in which they can be written."""
    for name, value in _USER_NAMESPACE_SYSCTLS.items():
        path = f"sys/user/{name}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        try:
            os.write(descriptor, value)
        finally:
            os.close(descriptor)


def is_alone() -> bool:
    """Whether this process has no child, neither living nor dead."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def exit_of(status: int, usage: resource.struct_rusage) -> Exit:
    """How a child ended, as wait4(2) tells it."""
    return Exit(
        at=time.monotonic(),
        code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        cpu_user_seconds=usage.ru_utime,
        cpu_system_seconds=usage.ru_stime,
        max_rss_bytes=usage.ru_maxrss * 1024,
        alone=False,
    )


def refuse(_: protocol.OnTree, __: list[int]) -> protocol.Message:
    """A sandbox for commands does not touch images."""
    return protocol.Failed(step="work", reason="this sandbox has no writable root")
