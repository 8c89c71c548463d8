"""Identifiers: a prefix and a UUIDv7 (RFC 9562) in Crockford base32, so that they sort by time."""

import os
import re
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26
_PATTERN = re.compile(rf"[a-z]{{2,8}}_[{_ALPHABET}]{{{_LENGTH}}}")


def new_id(prefix: str) -> str:
    """A new identifier, such as `job_06f8k0…`: 48 bits of milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    number = (milliseconds << 80) | random
    number = (number & ~(0xF << 76)) | (0x7 << 76)
    number = (number & ~(0x3 << 62)) | (0x2 << 62)
    digits = [_ALPHABET[(number >> shift) & 31] for shift in range(5 * (_LENGTH - 1), -1, -5)]
    return f"{prefix}_{''.join(digits)}"


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` has the form of an identifier with this prefix."""
    return text.startswith(f"{prefix}_") and _PATTERN.fullmatch(text) is not None
