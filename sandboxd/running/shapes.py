"""The shape of the sandbox that somebody needs: what is parked ahead of need is known by it."""

from collections.abc import Mapping
from types import MappingProxyType

from sandboxd.errors import SandboxFailed
from sandboxd.images.resolved import ResolvedImage
from sandboxd.isolation.spec import NATIVE, OciRuntime, SandboxSpec
from sandboxd.jobs import JobSpec
from sandboxd.quotas.limits import Limits

_INODE_BYTES = 4096
_LEAST_INODES = 1024


def sandbox_spec(
    image: ResolvedImage,
    spec: JobSpec,
    runtimes: Mapping[str, OciRuntime] = MappingProxyType({}),
) -> SandboxSpec:
    """The shape of the sandbox that a job needs."""
    return shape_of(image, spec.user, spec.limits)._replace(
        network=spec.network.mode,
        runtime=None if spec.runtime == NATIVE else _runtime(spec.runtime, runtimes),
    )


def shape_of(image: ResolvedImage, user: tuple[int, int] | None, limits: Limits) -> SandboxSpec:
    """The shape of a sandbox for this user (None: the image's own) and with room for this much on its disk."""
    uid, gid = user or image.user
    return SandboxSpec(
        rootfs=image.rootfs,
        below=image.below,
        binds=image.binds,
        writable=image.writable,
        scratch_bytes=limits.disk_bytes,
        scratch_inodes=max(_LEAST_INODES, limits.disk_bytes // _INODE_BYTES),
        uid=uid,
        gid=gid,
        groups=image.groups if user is None else (),
    )


def _runtime(name: str, runtimes: Mapping[str, OciRuntime]) -> OciRuntime:
    """Raises SandboxFailed if it is no longer there: the job was accepted before the service was started anew."""
    runtime = runtimes.get(name)
    if runtime is None:
        raise SandboxFailed("runtime", f"{name} is not configured any more")
    return runtime
