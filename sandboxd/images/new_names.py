"""What an image may be called from now on: by who tags, loads or commits it."""

from sandboxd.errors import Conflict, Fault, Invalid
from sandboxd.images import host
from sandboxd.images.documents.references import (
    BadReference,
    Reference,
    is_reference,
    parse_reference,
)
from sandboxd.images.store.names import check_name


def new_name(text: str) -> str:
    """The canonical reference, or a name such as imported images have where it has no `/`, `:` or `@` in it.

    Raises Invalid, also for a digest, which nobody can give to an image; Conflict for `host`.
    """
    if is_reference(text):
        return str(new_reference(text))
    if check_name(text) == host.NAME:
        raise Conflict(f"the name {host.NAME} is taken by the machine's own image")
    return text


def new_reference(text: str) -> Reference:
    """Raises Invalid."""
    try:
        reference = parse_reference(text)
    except BadReference as error:
        raise _invalid(f"the reference {error}") from None
    if reference.digest is not None:
        raise _invalid(f"{text[:256]} names a digest, which is what an image has and is not given")
    return reference


def _invalid(fact: str) -> Invalid:
    return Invalid(fact, (Fault("/name", fact),), code="bad_reference")
