"""A multipart/form-data body (RFC 7578), taken apart while it arrives: the part `job`, and files by their paths.

Runs in a thread, a block of the body at a time. Nothing of it is kept in memory but the part `job`.
"""

import hashlib
import re
from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sandboxd.errors import Malformed, TooLarge
from sandboxd.files.content import Writer
from sandboxd.jobs import InputFile

_OCTAL = re.compile(rb"0?[0-7]{3}")
JOB_PART = "job"
FILE_MODE = 0o644
_MOST_BOUNDARY_BYTES = 70
"""RFC 2046, 5.1.1."""


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names. Raises Malformed."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= _MOST_BOUNDARY_BYTES:
        raise Malformed("The form's Content-Type names no boundary.", code="form_malformed")
    return boundary


class FormReader:
    """One form on its way to the disk."""

    def __init__(
        self, boundary: bytes, writer: Writer, *, most_job_bytes: int, most_files: int
    ) -> None:
        self._writer = writer
        self._most_job_bytes = most_job_bytes
        self._most_files = most_files
        self._digest = hashlib.sha256()
        self._ended = False
        self._header = b""
        self._value = b""
        self._name: str | None = None
        self._mode = FILE_MODE
        self._began = 0
        self.job: bytearray | None = None
        """What the part `job` holds."""
        self.files: list[InputFile] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._in_header(self._more_of_header),
                "on_header_value": self._in_header(self._more_of_value),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, block: bytes) -> None:
        """Take the next bytes of the body. Raises Malformed, TooLarge, OSError of the disk."""
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise Malformed(f"The form cannot be read: {error}", code="form_malformed") from error

    def end(self) -> bytes:
        """The body is over. What it said, as a digest that does not depend on the boundary. Raises Malformed."""
        if not self._ended:
            raise Malformed("The form ends too early.", code="form_malformed")
        if self.job is None:
            raise Malformed(f'The form has no part "{JOB_PART}".', code="form_malformed")
        return self._digest.digest()

    def _in_header(self, take: Callable[[bytes], None]) -> Callable[[bytes, int, int], None]:
        return lambda block, start, end: take(block[start:end])

    def _begin_part(self) -> None:
        self._name, self._mode = None, FILE_MODE
        self._began = self._writer.size_bytes

    def _more_of_header(self, piece: bytes) -> None:
        self._header += piece

    def _more_of_value(self, piece: bytes) -> None:
        self._value += piece

    def _end_header(self) -> None:
        name, value = self._header.lower(), self._value
        self._header = self._value = b""
        if name == b"content-transfer-encoding" and value.lower() not in (b"binary", b"8bit"):
            raise Malformed("Parts of a form come as they are.", code="form_malformed")
        if name == b"sandboxd-mode":
            if not _OCTAL.fullmatch(value):
                raise Malformed(
                    "Sandboxd-Mode must be octal digits such as 0755.", code="form_malformed"
                )
            self._mode = int(value, 8)
        if name == b"content-disposition":
            _, options = parse_options_header(value)
            self._name = _text(options.get(b"name", b""))

    def _end_headers(self) -> None:
        if not self._name:
            raise Malformed("A part of the form has no name.", code="form_malformed")
        if self._name == JOB_PART:
            if self.job is not None:
                raise Malformed(f'The form has two parts "{JOB_PART}".', code="form_malformed")
            self.job = bytearray()
        elif len(self.files) == self._most_files:
            raise TooLarge(f"More than {self._most_files} files.", code="too_many_files")
        self._digest.update(b"\0part\0%o\0%s\0" % (self._mode, self._name.encode()))

    def _data(self, block: bytes, start: int, end: int) -> None:
        piece = memoryview(block)[start:end]
        self._digest.update(piece)
        if self._name != JOB_PART or self.job is None:
            self._writer.write(piece)
            return
        if len(self.job) + len(piece) > self._most_job_bytes:
            raise TooLarge(
                f'The part "{JOB_PART}" is over the limit of {self._most_job_bytes} bytes.',
                code="body_too_large",
            )
        self.job += piece

    def _end_part(self) -> None:
        if self._name is None:
            return
        size_bytes = self._writer.size_bytes - self._began
        self._digest.update(size_bytes.to_bytes(8, "big"))
        if self._name != JOB_PART:
            self.files.append(
                InputFile(
                    path=self._name, mode=self._mode, size_bytes=size_bytes, offset=self._began
                )
            )

    def _end(self) -> None:
        self._ended = True


def _text(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("The name of a part is not UTF-8.", code="form_malformed") from None
