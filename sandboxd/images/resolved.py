"""What a job needs to know of its image."""

import msgspec


class ResolvedImage(msgspec.Struct, frozen=True, kw_only=True):
    """A root file system that is ready on this host, and the defaults for commands in it."""

    name: str
    digest: str
    rootfs: str
    """Absolute path of the tree."""
    binds: tuple[tuple[str, str], ...] = ()
    writable: tuple[str, ...] = ("/work",)
    user: tuple[int, int] = (0, 0)
    workdir: str = "/work"
    env: dict[str, str]
