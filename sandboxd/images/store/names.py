"""The names of images on the disk: what each means, as a file that is replaced whole.

`names/NAME.json` is an imported image, `references/HEX.json` one of a registry, HEX being the digest of its canonical reference,
which can be longer than a file's name. What a registry showed to one tenant's credentials is beside it (`HEX.WHOSE.json`): the same
reference may mean something else to each, and nobody's pull changes what it means to another.
"""

import contextlib
import hashlib
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

import msgspec

from sandboxd.errors import Fault, Invalid, NotFound
from sandboxd.ids import new_id
from sandboxd.images.documents.references import BadReference, is_reference, parse_reference
from sandboxd.images.store.locks import make_locked, remove_unused
from sandboxd.images.store.owners import owned
from sandboxd.images.store.syncing import sync_directory
from sandboxd.jobs import Image

NAME_PATTERN = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*", re.ASCII)
NAME_LENGTH = 128
_MOST_SEEN_BYTES = 8 * 2**10
"""What is kept in memory of one, which can have a mebibyte of environment."""


class RunAs(msgspec.Struct, frozen=True, kw_only=True):
    """How an image wants to be run."""

    user: tuple[int, int] = (0, 0)
    groups: tuple[int, ...] = ()
    env: dict[str, str]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str
    stop_signal: int = signal.SIGTERM
    """What asks its programs to end."""


class LayerOf(msgspec.Struct, frozen=True, kw_only=True):
    """A layer of an image."""

    diff_id: str
    """`sha256:…` of its archive, uncompressed."""
    digest: str
    """Of the blob that it came as, which may have been removed again: its tree is what counts."""


class Record(Image, frozen=True, kw_only=True):
    """An image as it is kept: what is told of it, and what is needed to run it. Its digest is its manifest's, or of the import's tar."""

    tree: str = ""
    """Key of its tree, where it has but one for all layers; empty: that of its digest."""
    trees: tuple[str, ...] = ()
    """Keys of its trees, the uppermost first; empty: it has but one."""
    configuration: str = ""
    """Digest of its configuration; empty: it came as a tar, or with a release that did not note it."""
    layers: tuple[LayerOf, ...] = ()
    """The lowest first; empty as the configuration."""
    run_as: RunAs | None = None
    """None: its author did not say."""
    blobs: tuple[str, ...] = ()
    """Digests of what it was made from."""
    owner: str = ""
    """Whose its blobs and trees are (see `owners`); empty: everybody's."""
    tenants: tuple[str, ...] = ()
    """Whose own credentials its registry accepted for it; empty: everybody may use it."""

    def is_for(self, tenant: str | None) -> bool:
        """Whether a tenant may use it, or know of it; None: the operator."""
        return tenant is None or not self.tenants or tenant in self.tenants

    @property
    def holder(self) -> str:
        """The tenant for whom alone its name means this, whatever it means to others; empty: it is one for all."""
        return self.owner if self.source == "registry" else ""

    def also_for(self, former: "Record") -> "Record":
        """The same for those, too, who can use the very same image by this name, or could before."""
        if former.digest != self.digest or not self.tenants:
            return self
        if not former.tenants:
            return msgspec.structs.replace(self, tenants=())
        tenants = tuple(sorted({*former.tenants, *self.tenants}))
        return msgspec.structs.replace(self, tenants=tenants)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its trees, the uppermost first."""
        return self.trees or (self.tree or self.digest.removeprefix("sha256:"),)

    @property
    def kept_blobs(self) -> tuple[str, ...]:
        """What the blobs are called that it was made from."""
        return tuple(owned(digest, self.owner) for digest in self.blobs)

    @property
    def blobs_of_layers(self) -> tuple[str, ...]:
        """What the blobs of its layers are called."""
        return tuple(owned(layer.digest, self.owner) for layer in self.layers)

    @property
    def image(self) -> Image:
        """What is told of it."""
        told = {name: getattr(self, name) for name in Image.__struct_fields__}
        return Image(**told)


class _Seen(NamedTuple):
    """A file as it was when it was read."""

    mark: tuple[int, int, int]
    record: Record


class Names:
    """The names of one data directory."""

    def __init__(self, directory: Path) -> None:
        """Make the directories."""
        self._names = directory / "names"
        self._references = directory / "references"
        self._names.mkdir(parents=True, exist_ok=True)
        self._references.mkdir(exist_ok=True)
        self._seen: dict[Path, _Seen] = {}

    def all(self) -> list[Record]:
        """Every image by name, those of registries last."""
        before, self._seen = self._seen, {}
        found = []
        for directory in (self._names, self._references):
            records = []
            for path in directory.glob("*.json"):
                with contextlib.suppress(FileNotFoundError):  # It was forgotten meanwhile.
                    records.append(self._look(path, before.get(path)))
            found += sorted(records, key=lambda record: record.name)
        return found

    def _look(self, path: Path, seen: "_Seen | None") -> Record:
        """All are looked at at each change, and of thousands few have changed."""
        status = path.stat()
        mark = (status.st_ino, status.st_ctime_ns, status.st_size)
        if seen is None or seen.mark != mark:
            # What is newer than the mark is read again the next time.
            seen = _Seen(mark, _decode(path.read_bytes()))
        if status.st_size <= _MOST_SEEN_BYTES:
            self._seen[path] = seen
        return seen.record

    def read(self, name: str, tenant: str | None = None) -> Record:
        """What a name means to a tenant: an imported image's own name, or a reference. Raises NotFound, also for what is not for them.

        To the operator (None): what it means to all, or else what the last tenant got who asked a registry.
        """
        if tenant is None:
            first, *others = self.named(name)
            for other in others:
                first = first.also_for(other)
            return first
        for holder in (tenant, ""):
            with contextlib.suppress(FileNotFoundError):
                record = _decode(self._file(name, holder).read_bytes())
                if record.is_for(tenant):
                    return record
        raise not_found(name)

    def named(self, name: str) -> list[Record]:
        """All that it means, to all and to each tenant alone, what is for all first, then the newest. Raises NotFound if that is nothing."""
        file = self._file(name)
        # An import's name may have dots in it, and is for all.
        pattern = file.name if is_name(name) else f"{file.stem}.*json"
        found = []
        for path in file.parent.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                found.append(_decode(path.read_bytes()))
        if not found:
            raise not_found(name)
        return sorted(found, key=lambda record: (record.holder != "", -record.created_at))

    def same_place(self, record: Record) -> Record | None:
        """What has the place of a record now."""
        try:
            return _decode(self._file(record.name, record.holder).read_bytes())
        except FileNotFoundError:
            return None

    def used(self, record: Record, now: float) -> None:
        """Note that it is used (Unix time). Of no consequence if it is lost."""
        with contextlib.suppress(OSError):
            os.utime(self._file(record.name, record.holder), (now, now))

    def last_used(self, record: Record) -> float:
        """Unix time when that was noted, or the name was given. Raises NotFound."""
        try:
            return self._file(record.name, record.holder).stat().st_mtime
        except FileNotFoundError:
            raise not_found(record.name) from None

    def remove_halves(self) -> None:
        """Remove what somebody left who died while a name was written."""
        for directory in (self._names, self._references):
            for temporary in directory.glob("*.tmp"):
                remove_unused(temporary)

    def write(self, record: Record) -> None:
        """Let its name mean this from now on."""
        _replace(self._file(record.name, record.holder), msgspec.json.encode(record))

    def forget(self, record: Record) -> None:
        """Raises NotFound."""
        try:
            self._file(record.name, record.holder).unlink()
        except FileNotFoundError:
            raise not_found(record.name) from None

    def _file(self, name: str, holder: str = "") -> Path:
        """Raises NotFound for what can be no name. A name that an import can have is never looked for elsewhere."""
        if is_name(name):
            return self._names / f"{name}.json"
        if not is_reference(name):
            raise not_found(name)
        try:
            canonical = str(parse_reference(name))
        except BadReference:
            raise not_found(name) from None
        key = hashlib.sha256(canonical.encode()).hexdigest()
        return self._references / f"{owned(key, holder)}.json"


def check_name(name: str) -> str:
    """The name itself. Raises Invalid for one that no imported image can have."""
    if not is_name(name):
        detail = "lower-case letters and digits, with single . _ - between them, at most 128"
        raise Invalid(f"{name[:80]!r} is not an image name: {detail}", (Fault("/image", detail),))
    return name


def is_name(name: str) -> bool:
    """Whether an imported image can be called so."""
    return len(name) <= NAME_LENGTH and NAME_PATTERN.fullmatch(name) is not None


def not_found(name: str) -> NotFound:
    """The refusal of a name that means nothing here, or nothing to whoever asks."""
    return NotFound(f'no image "{name[:256]}"', code="image_not_found")


def _decode(content: bytes) -> Record:
    return msgspec.json.decode(content, type=Record)


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it has either its old content or its new."""
    temporary = path.with_suffix(f".{new_id('name')}.tmp")
    while (descriptor := make_locked(temporary)) is None:
        pass  # Who sweeps looked at it before it was locked.
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        temporary.rename(path)
    sync_directory(path.parent)
