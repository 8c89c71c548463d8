"""How speaking to a registry fails: for good, or so that it can be tried again."""

from sandboxd.errors import Unavailable


class Broken(Exception):
    """A connection or an answer broke off, says a sentence; it can be tried again."""


def failed(detail: str) -> Unavailable:
    """A registry did not do what was asked for."""
    return Unavailable(detail, code="registry_failed")
