"""Who somebody is at a registry."""

import base64
from typing import NamedTuple


class Credentials(NamedTuple):
    """Either of the two, or nothing at all. Whoever prints them sees no secret."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    """For the registry's token service, instead of a name and a password."""

    @property
    def basic(self) -> str | None:
        """As a header has them (RFC 7617)."""
        if not self.username:
            return None
        words = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(words).decode()}"

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token)

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"
