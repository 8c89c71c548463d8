"""Whose the blobs and trees of an image are: everybody's, or one tenant's.

What a registry shows to the credentials of one tenant alone is kept apart from what it shows to anybody. Blobs are found by digests, and
digests are no secrets: who names the layer of somebody else's image in a manifest of their own must have it from a registry, as
anybody must.
"""

import hashlib

_HEX_DIGITS = 16


def owned(key: str, owner: str) -> str:
    """What a blob or a tree is called that is `owner`'s, or is on its way from that source; empty: everybody's."""
    return f"{key}.{hashlib.sha256(owner.encode()).hexdigest()[:_HEX_DIGITS]}" if owner else key
