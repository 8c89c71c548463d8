"""Tar archives that no tar program would write."""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes | None = b"", **fields: Any) -> Entry:
    """One entry; `fields` are those of TarInfo."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    info.size = len(content or b"")
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content or b""


def directory(name: str, **fields: Any) -> Entry:
    return entry(name, type=tarfile.DIRTYPE, **{"mode": 0o755, **fields})


def link(name: str, target: str, **fields: Any) -> Entry:
    return entry(name, type=tarfile.SYMTYPE, linkname=target, **fields)


def hard_link(name: str, target: str, **fields: Any) -> Entry:
    return entry(name, type=tarfile.LNKTYPE, linkname=target, **fields)


def packed(*entries: Entry, form: int = tarfile.PAX_FORMAT, end: bool = True) -> bytes:
    """The archive, header by header: tarfile's own writer would refuse some of them."""
    out = io.BytesIO()
    for info, content in entries:
        out.write(info.tobuf(form, "utf-8", "surrogateescape"))
        out.write(content)
        out.write(b"\0" * (-len(content) % tarfile.BLOCKSIZE))
    if end:
        out.write(b"\0" * 2 * tarfile.BLOCKSIZE)
    return out.getvalue()


def header(name: bytes, *, size: bytes = b"0", mode: bytes = b"644", kind: bytes = b"0") -> bytes:
    """A raw ustar header with numbers as they are given, and the right checksum."""

    def number(value: bytes, width: int) -> bytes:
        return value if len(value) == width else value.rjust(width - 1, b"0") + b"\0"

    block = b"".join(
        [
            name.ljust(100, b"\0"),
            number(mode, 8),
            number(b"0", 8),
            number(b"0", 8),
            number(size, 12),
            number(b"0", 12),
            b" " * 8,
            kind,
            b"\0" * 100,
            b"ustar\x0000",
        ]
    ).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def extension(kind: bytes, content: bytes, declared_size: int | None = None) -> bytes:
    """An extension header (PAX `x` or `g`, GNU `L` or `K`) and what it says."""
    size = len(content) if declared_size is None else declared_size
    padded = content + b"\0" * (-len(content) % 512)
    return header(b"extension", size=b"%o" % size, kind=kind) + padded


def pax_record(key: str, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, the length counting itself."""
    rest = b" " + key.encode() + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def with_dictionary_of_1536_mib(content: bytes) -> bytes:
    """xz, its block header saying that so much memory is needed to decompress it (xz-file-format, 3.1 and 5.3.1)."""
    compressed = lzma.compress(content)
    end = 12 + (compressed[12] + 1) * 4
    properties = compressed.index(b"\x21\x01", 12) + 2
    block_header = compressed[12:properties] + b"\x25" + compressed[properties + 1 : end - 4]
    checksum = zlib.crc32(block_header).to_bytes(4, "little")
    return compressed[:12] + block_header + checksum + compressed[end:]


COMPRESSIONS: Sequence[Callable[[bytes], bytes]] = (gzip.compress, bz2.compress, lzma.compress)
