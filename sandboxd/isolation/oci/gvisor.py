"""A keeper for gVisor's `runsc`: the command is no process of this kernel, but one inside a kernel of its own, the sentry.

So there is nothing to hold after its execve, and nothing to signal from here: the sentry is made first (`create`), which is when
the service sets the limits, beside what the sentry has by then; then it is told to start the command, and to signal it. It
exits as the command did, as a shell would say it: 128 and the signal's number.

The file system is that of other sandboxes, but for /proc, /sys and /dev, which are the sentry's own.
"""

import signal
import socket
from typing import Any, NoReturn

from sandboxd.isolation import init, protocol
from sandboxd.isolation.oci import keeper
from sandboxd.isolation.oci.keeper import name_of
from sandboxd.isolation.spec import Exit

_SIGNALLED = 128


def main(order: init.Order, channel: socket.socket, mapper: socket.socket) -> NoReturn:
    """Life of the keeper. It never returns."""
    init.live(SentryKeeper(order, channel, mapper))


class SentryKeeper(keeper.Keeper):
    """One sandbox with a sentry in it, seen from outside that."""

    own_kernel = True

    def load(self, request: protocol.Run, path: str, descriptors: list[int]) -> int:
        """Have the sentry made. Returns its pid. Raises OSError, SandboxFailed, ValueError."""
        return self.create(request, path, descriptors)

    def begin(self, request: protocol.Run, pid: int) -> None:
        """Have the sentry start the command. Raises SandboxFailed, and with this process the sandbox ends."""
        self.call("start", name_of(request.number), streams=[])

    def pass_on_signal(self, request: protocol.Signal) -> None:
        for number, _ in self.running.values():
            if number == request.command:
                self.spawn("kill", "--all", name_of(number), str(request.number), streams=[])

    def exit_of(self, status: int, usage: Any) -> Exit:
        how = init.exit_of(status, usage)
        if how.code is None or how.code <= _SIGNALLED or how.code > _SIGNALLED + signal.NSIG - 1:
            return how
        return how._replace(code=None, signal=how.code - _SIGNALLED)
