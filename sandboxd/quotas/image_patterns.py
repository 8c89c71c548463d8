"""Patterns of images: which names an operator meant."""

import fnmatch
from collections.abc import Iterable


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns is meant to have this image's name.

    Where both have a slash, the part before the first is that of a registry's host: no `*` of a host reaches into the path,
    or `*.example.com/*` would be true of `evil.test/x.example.com/y`.
    """
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    host, slash, path = name.partition("/")
    wanted_host, wanted_slash, wanted_path = pattern.partition("/")
    if not slash or not wanted_slash:
        return fnmatch.fnmatchcase(name, pattern)
    # An IPv6 address has brackets, which a pattern has for characters to choose from.
    same_host = host == wanted_host or fnmatch.fnmatchcase(host, wanted_host)
    return same_host and fnmatch.fnmatchcase(path, wanted_path)
