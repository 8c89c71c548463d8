"""What a registry answers to a request without the right to it: `WWW-Authenticate` (RFC 9110, 11.6.1)."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_LONGEST_HEADER = 8192
_WORD = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_SCHEME = re.compile(rf"\s*({_WORD})(?:\s+|\s*,\s*|$)")
_PARAMETER = re.compile(rf'\s*({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))\s*(,|$)')


class Challenge(NamedTuple):
    """One way to get the right."""

    scheme: str
    """In lower case: `basic`, `bearer`."""
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """All that the header says up to where it makes no sense any more."""
    challenges: list[Challenge] = []
    rest = header[:_LONGEST_HEADER]
    while match := _SCHEME.match(rest):
        rest = rest[match.end() :]
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(rest):
            name, quoted, plain, _ = parameter.groups()
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.setdefault(name.lower(), value)
            rest = rest[parameter.end() :]
        challenges.append(Challenge(match[1].lower(), parameters))
    return challenges
