"""Pulling an image in a test, and what of it is in the store."""

from typing import Any

from image_bench import ImageBench
from registries import BRIEF

from sandboxd.images.catalogue import Images
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.pulling import pull
from sandboxd.images.registries.terms import Access, Patience
from sandboxd.images.registries.transport import Transport
from sandboxd.images.transfers import Progress


def fetch(
    images: ImageBench,
    reference: str,
    *,
    access: Access = Access(insecure=True),  # noqa: B008 (a value)
    patience: Patience = BRIEF,
    told: list[Progress] | None = None,
    catalogue: Images | None = None,
    owner: str = "",
) -> Any:
    parsed = parse_reference(reference)

    async def fetched() -> Any:
        transport = Transport({parsed.registry: access}, patience)
        tell = (lambda _: None) if told is None else told.append
        try:
            return await pull(catalogue or images.images, transport, parsed, tell, owner=owner)
        finally:
            await transport.close()

    return images.bench.do(fetched())


def blobs_of(images: ImageBench) -> set[str]:
    return {path.name for path in (images.store / "oci/blobs/sha256").iterdir()}


def nothing_was_kept(images: ImageBench) -> bool:
    """No name, and nothing half-done. (Blobs and trees that a next pull goes on with do not count.)"""
    names = [image.name for image in images.bench.do(images.images.list())]
    halves = [*(images.store / "oci/partial").iterdir(), *(images.store / "making").iterdir()]
    return names == ["host"] and images.left_over() == [] and halves == []
