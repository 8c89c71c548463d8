"""Identifiers: a prefix and a UUIDv7 (RFC 9562) in Crockford base32, so that they sort by time."""

import functools
import os
import re
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_PATTERN = re.compile(rf"[a-z]{{2,8}}_[{_ALPHABET}]{{{_LENGTH}}}")


class _Clock:
    """Milliseconds and 74 bits below them that never go back: ids made in one millisecond sort in order, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = (0, 0)

    def next(self) -> tuple[int, int]:
        """(milliseconds, the bits below)."""
        with self._lock:
            now = max(time.time_ns() // 1_000_000, self._last[0])
            if now == self._last[0]:
                # RFC 9562, 6.2, method 2: a random step upwards within the same millisecond.
                below = self._last[1] + 1 + int.from_bytes(os.urandom(4))
            else:
                below = int.from_bytes(os.urandom(9))
            self._last = (now, below)
        return now, below & ((1 << 74) - 1)


_clock = _Clock()


def new_id(prefix: str) -> str:
    """A new identifier, such as `job_06f8k0…`: 48 bits of milliseconds, then 74 random bits."""
    milliseconds, below = _clock.next()
    version, variant = 0x7, 0x2
    number = version << 76 | (below >> 62) << 64 | variant << 62 | below & ((1 << 62) - 1)
    return f"{prefix}_{_time_digits(milliseconds)}{_digits(number, 80)}"


@functools.lru_cache(maxsize=8)
def _time_digits(milliseconds: int) -> str:
    """Many ids are made in one millisecond."""
    return _digits(milliseconds, 50)


def _digits(number: int, bits: int) -> str:
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(bits - 10, -1, -10)])


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` has the form of an identifier with this prefix."""
    return text.startswith(f"{prefix}_") and _PATTERN.fullmatch(text) is not None
