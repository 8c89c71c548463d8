"""What a job needs to know of its image."""

import signal
from collections.abc import Sequence

import msgspec


class ResolvedImage(msgspec.Struct, frozen=True, kw_only=True):
    """A root file system that is ready on this host, and the defaults for commands in it."""

    name: str
    digest: str
    rootfs: str
    """Absolute path of the tree, or of the uppermost of several."""
    below: tuple[str, ...] = ()
    """Those under it, the uppermost first."""
    binds: tuple[tuple[str, str], ...] = ()
    writable: tuple[str, ...] = ("/work",)
    user: tuple[int, int] = (0, 0)
    groups: tuple[int, ...] = ()
    """Supplementary groups of that user."""
    workdir: str = "/work"
    env: dict[str, str]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    stop_signal: int = signal.SIGTERM

    @property
    def trees(self) -> tuple[str, ...]:
        """Paths of all its trees, the uppermost first."""
        return (self.rootfs, *self.below)

    def command(self, args: Sequence[str]) -> tuple[str, ...]:
        """What it runs of its own accord: its entry point with these arguments, or with its own if there are none.

        Empty: its author did not say.
        """
        if not self.entrypoint and not self.cmd:
            return ()
        return (*self.entrypoint, *(args or self.cmd))
