"""Server-sent events (WHATWG HTML, 9.2): how one is written, and what Last-Event-ID says.

An event's id is the offset in the merged log up to which the client has everything, so that it resumes exactly and we
remember nothing. The closing event's id is `OFFSET-end`: who comes back with that is told by 204 to stay away.
"""

import re
from typing import NamedTuple

_LAST_EVENT_ID = re.compile(r"([0-9]{1,18})(-end)?")


class LastEvent(NamedTuple):
    """Where a client that comes back had got to."""

    offset: int
    ended: bool


def parse_last_event_id(header: str) -> LastEvent | None:
    """None for a first visit, and for an id that is none of ours."""
    match = _LAST_EVENT_ID.fullmatch(header.strip())
    return LastEvent(int(match[1]), match[2] is not None) if match else None


def event(name: str, event_id: str, payload: bytes) -> bytes:
    """One event. The payload is one line of JSON."""
    return b"event: %b\nid: %b\ndata: %b\n\n" % (name.encode(), event_id.encode(), payload)


def comment(text: str) -> bytes:
    """A line that clients ignore: it shows that the connection lives."""
    return f": {text}\n\n".encode()
