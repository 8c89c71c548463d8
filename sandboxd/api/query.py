"""Query parameters: only known ones, each with a value that can be used, all faults told at once."""

import functools
import math
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode

from sandboxd.api.problems import BadParameters
from sandboxd.errors import Invalid, Malformed
from sandboxd.jobs import State, Stream
from sandboxd.store.cursors import decode_cursor

Word = TypeVar("Word", bound=StrEnum)

MAX_PARAMETERS = 100
MAX_PAGE = 200
DEFAULT_PAGE = 50

_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_WORDS = {"true": True, "1": True, "": True, "false": False, "0": False}


class Query(NamedTuple):
    """The parameters of a request, each with every value that was given."""

    known: Mapping[str, list[str]]
    unknown: tuple[str, ...] = ()

    def reader(self) -> "QueryReader":
        """To read the values with; its `done()` tells the unknown names together with what else is wrong."""
        return QueryReader(self)

    def next_page(self, path: str, cursor: str | None) -> dict[str, str]:
        """The header that leads to the next page of a list (RFC 8288): the same question from there on. None: it is the last."""
        if cursor is None:
            return {}
        asked = {name: values for name, values in self.known.items() if name != "cursor"}
        target = urlencode({**asked, "cursor": cursor}, doseq=True)
        return {"Link": f'<{path}?{target}>; rel="next"'}


def parse_query(query_string: bytes, known: Collection[str]) -> Query:
    """The parameters of a request. A known name that ends with a dot is a prefix (`label.`).

    Raises Malformed.
    """
    if not query_string:
        return Query({})
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError as error:  # not ASCII, not UTF-8 inside, or too many
        raise Malformed("The query string cannot be read.") from error
    query: dict[str, list[str]] = {}
    for name, value in pairs:
        query.setdefault(name, []).append(value)
    unknown = tuple(name for name in query if not _is_known(name, known))
    return Query(
        {name: values for name, values in query.items() if name not in unknown},
        unknown,
    )


def _is_known(name: str, known: Collection[str]) -> bool:
    prefix, dot, rest = name.partition(".")
    if dot and prefix + dot in known:
        return bool(rest)
    return name in known


class QueryReader:
    """Reads typed values out of a query and collects what is wrong; `done()` raises it."""

    def __init__(self, query: Query) -> None:
        self._query = query.known
        self._faults = [(name, "is not a parameter of this resource") for name in query.unknown]

    def done(self) -> None:
        """Raises BadParameters if anything was wrong."""
        if self._faults:
            raise BadParameters(tuple(self._faults))

    def text(self, name: str) -> str | None:
        values = self._query.get(name)
        if values is None:
            return None
        if len(values) > 1:
            self._faults.append((name, "is given more than once"))
        return values[0]

    def flag(self, name: str, *, default: bool = False) -> bool:
        """`?name`, `?name=true` and `?name=1` are true."""
        word = self.text(name)
        if word is None:
            return default
        if word.lower() not in _WORDS:
            self._faults.append((name, 'must be "true" or "false"'))
            return default
        return _WORDS[word.lower()]

    def integer(self, name: str, *, least: int, most: int) -> int | None:
        word = self.text(name)
        if word is None:
            return None
        if not (word.isascii() and word.isdigit() and len(word) <= 18):
            self._faults.append((name, "must be a whole number"))
            return None
        if not least <= int(word) <= most:
            self._faults.append((name, f"must be from {least} to {most}"))
            return None
        return int(word)

    def seconds(self, name: str) -> float | None:
        word = self.text(name)
        if word is None:
            return None
        if not _NUMBER.fullmatch(word):
            self._faults.append((name, "must be a number of seconds"))
            return None
        return float(word)

    def time(self, name: str) -> float | None:
        """Unix time from RFC 3339 or from a number of seconds."""
        word = self.text(name)
        if word is None:
            return None
        if _NUMBER.fullmatch(word):
            return float(word)
        try:
            moment = datetime.fromisoformat(
                word.replace(" ", "+")
            )  # "+" of an offset, read as a form
            if moment.tzinfo is None:
                raise ValueError("no offset from UTC")
            return moment.timestamp()
        except (ValueError, OverflowError):
            self._faults.append((name, 'must be a time such as "2026-01-31T12:00:00Z"'))
            return None

    def states(self, name: str) -> frozenset[State]:
        """Repeatable, and with commas."""
        return self.words(name, State)

    def words(self, name: str, kind: type[Word]) -> frozenset[Word]:
        """Repeatable, and with commas: words of an enumeration."""
        words = [word for value in self._query.get(name, []) for word in value.split(",")]
        known = {str(word): word for word in kind}
        unknown = [word for word in words if word not in known]
        if unknown:
            self._faults.append((name, f"must be of: {', '.join(known)}"))
        return frozenset(known[word] for word in words if word in known)

    def stream(self, name: str) -> Stream | None:
        word = self.text(name)
        if word is None:
            return None
        if word not in tuple(Stream):
            self._faults.append((name, 'must be "stdout" or "stderr"'))
            return None
        return Stream(word)

    def cursor(self, name: str, *, prefix: str = "job") -> str | None:
        word = self.text(name)
        try:
            if word is not None:
                decode_cursor(word, prefix)
        except Invalid as error:
            self._faults.append((name, error.detail))
            return None
        return word

    def labels(self, prefix: str) -> dict[str, str]:
        """All `label.KEY=VALUE`."""
        names = [name for name in self._query if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.text(name) or "" for name in names}


def rfc3339(unix_seconds: float) -> str:
    """A time as we write it: UTC with milliseconds."""
    seconds, milliseconds = divmod(math.floor(unix_seconds * 1000), 1000)
    return f"{_up_to_the_second(seconds)}.{milliseconds:03d}Z"


@functools.lru_cache(maxsize=256)
def _up_to_the_second(unix_seconds: int) -> str:
    """Of a job, most times are of one second, or of two."""
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%dT%H:%M:%S}"
