"""All that is known of one image: its record, and what the documents say that came with it. They were verified when they came."""

import contextlib
from typing import NamedTuple

from sandboxd.errors import Conflict, Invalid
from sandboxd.images import host
from sandboxd.images.catalogue import Images
from sandboxd.images.contents import Contents, read_documents
from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.history import labels_of
from sandboxd.images.store.names import RunAs
from sandboxd.jobs import Image


class Details(NamedTuple):
    """An image with what it is made of. Layers and labels are empty where its documents are not here (any more)."""

    image: Image
    run_as: RunAs | None
    """None: its author did not say."""
    tenants: tuple[str, ...] = ()
    """Whose own credentials its registry accepted for it; empty: everybody may use it."""
    layers: tuple[Descriptor, ...] = ()
    """The lowest first."""
    config_digest: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    last_used_at: float | None = None
    """Unix time, to some minutes."""


async def details_of(images: Images, name: str, tenant: str | None = None) -> Details:
    """What a tenant may know of an image; None: the operator. Raises NotFound."""
    if name == host.NAME:
        (ours,) = [each for each in await images.list() if each.name == name]
        image = await images.resolve(name)
        return Details(ours, RunAs(user=image.user, env=image.env, workdir=image.workdir))
    record = images.record(name, tenant)
    known = Details(
        record.image, record.run_as, record.tenants, last_used_at=images.last_used(record)
    )
    if record.run_as is None:
        return known
    with contextlib.suppress(Conflict):
        return _with_documents(known, read_documents(images, name, tenant))
    return known


def _with_documents(known: Details, contents: Contents | None) -> Details:
    if contents is None:
        return known
    labels: dict[str, str] = {}
    with contextlib.suppress(Invalid):  # They mean nothing to us, so nobody looked at them before.
        labels = labels_of(contents)
    return known._replace(
        layers=contents.manifest.layers,
        config_digest=contents.manifest.config.digest,
        labels=tuple(labels.items()),
    )
