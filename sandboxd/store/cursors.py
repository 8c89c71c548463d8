"""Cursors of lists: the id of the last job of a page, in a form that nobody is tempted to make up."""

import base64
import binascii

from sandboxd.errors import Fault, Invalid
from sandboxd.ids import is_id


def encode_cursor(job_id: str) -> str:
    """The cursor that goes on after this job."""
    return base64.urlsafe_b64encode(job_id.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, prefix: str = "job") -> str:
    """The id of the job (or what else has ids of this prefix) that a cursor goes on after.

    Raises Invalid (`invalid_cursor`).
    """
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        job_id = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeError) as error:
        raise _bad_cursor() from error
    if not is_id(job_id, prefix) or encode_cursor(job_id) != cursor:
        raise _bad_cursor()
    return job_id


def _bad_cursor() -> Invalid:
    text = "the cursor is not one that a page of this list gave"
    return Invalid(text, (Fault("", text),), code="invalid_cursor")
