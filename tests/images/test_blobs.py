"""Blobs: under its digest is only what has that digest, whatever was sent and whenever it broke off."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from sandboxd.errors import Conflict, Invalid, Unavailable
from sandboxd.images.documents.manifests import Descriptor
from sandboxd.images.store.blobs import Blobs

CONTENT = b"layer" * 1000


def descriptor(content: bytes = CONTENT, size: int | None = None) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Descriptor(media_type="", digest=digest, size=len(content) if size is None else size)


async def sent(*pieces: bytes) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


async def never() -> AsyncGenerator[bytes, None]:
    yield b"layer"
    await asyncio.Event().wait()


def add(blobs: Blobs, wanted: Descriptor, *pieces: bytes) -> list[int]:
    told: list[int] = []
    asyncio.run(blobs.add(wanted, sent(*pieces), told.append))
    return told


def stored(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.glob("*/**/*"))


def test_a_blob_is_stored_by_its_digest_in_an_oci_layout(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)

    told = add(blobs, descriptor(), CONTENT[:7], CONTENT[7:])

    assert told == [7, len(CONTENT)]
    assert blobs.has(descriptor())
    assert blobs.path(descriptor().digest).read_bytes() == CONTENT
    assert stored(tmp_path) == ["blobs/sha256", f"blobs/sha256/{descriptor().digest[7:]}"]
    assert (tmp_path / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    add(blobs, descriptor(), CONTENT)

    assert add(blobs, descriptor(), b"never looked at") == [len(CONTENT)]


@pytest.mark.parametrize(
    "pieces",
    [
        [CONTENT[:-1]],
        [CONTENT, b"x"],
        [CONTENT[:-1] + b"X"],
        [],
    ],
)
@pytest.mark.attack(67)
def test_what_is_not_what_was_asked_for_is_refused_and_not_kept(
    pieces: list[bytes], tmp_path: Path
) -> None:
    blobs = Blobs(tmp_path)

    with pytest.raises(Invalid):
        add(blobs, descriptor(), *pieces)

    assert not blobs.has(descriptor())
    assert stored(tmp_path) == ["blobs/sha256"]


@pytest.mark.attack(67)
def test_an_endless_blob_is_refused_at_its_first_byte_too_many(tmp_path: Path) -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        while True:
            yield CONTENT

    async def fetch() -> None:
        await Blobs(tmp_path).add(descriptor(), endless(), lambda _: None)

    with pytest.raises(Invalid, match="more than the 5000 bytes"):
        asyncio.run(fetch())


@pytest.mark.attack(66)
def test_a_blob_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    async def fetch() -> None:
        await Blobs(tmp_path).add(descriptor(), never(), lambda _: None, seconds=0.01)

    with pytest.raises(Unavailable):
        asyncio.run(fetch())

    assert stored(tmp_path) == ["blobs/sha256"]


@pytest.mark.attack(73)
def test_nothing_is_removed_while_somebody_fetches(tmp_path: Path) -> None:
    blobs, other = Blobs(tmp_path), Blobs(tmp_path)
    add(blobs, descriptor(), CONTENT)
    kept = asyncio.run(blobs.put(b"{}"))
    (tmp_path / "partial" / "broken").write_bytes(b"x")

    with blobs.in_use(), pytest.raises(Conflict):
        other.keep_only(set)
    other.keep_only(lambda: {kept})

    assert not blobs.has(descriptor())
    assert stored(tmp_path) == ["blobs/sha256", f"blobs/sha256/{kept[7:]}"]
