"""On which terms a registry is spoken to: who we are there, by which way, and how patiently."""

import ssl
from typing import NamedTuple

ANY_OTHER = "*"
"""Among registries: those that are not named. It is no host's name."""


class Access(NamedTuple):
    """What the operator says of one registry."""

    username: str = ""
    password: str = ""
    insecure: bool = False
    """Speak plain HTTP."""
    tls: ssl.SSLContext | None = None
    """None: the certificates that this machine trusts."""
    identity_token: str = ""
    """For its token service, instead of a name and a password."""
    helper: str = ""
    """Name of the credential helper that knows more than this; empty: none does."""
    owner: str = ""
    """The tenant whose own credentials these are; empty: nobody's but the operator's."""
    is_named: bool = True
    """Whether the operator named it: then it may have an address that is not public."""
    proxy: str = ""
    """Through whom it is spoken to, in the words of the settings; empty: nobody."""
    mirrors: tuple[str, ...] = ()
    """URLs of who is asked before it."""
    mirrors_only: bool = False

    def __repr__(self) -> str:
        return f"Access(username={self.username!r}, insecure={self.insecure})"


UNKNOWN = Access(is_named=False)


class Patience(NamedTuple):
    """How long and how often something is tried."""

    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    """Between two pieces of an answer."""
    tries: int = 5
    first_wait_seconds: float = 0.5
    """After a failure; twice as long each time."""
    most_wait_seconds: float = 30.0
    """Whatever the registry asks for (`Retry-After`)."""
    documents_seconds: float = 300.0
    """For all that is asked of an image but its layers, with every wait."""
    mirror_tries: int = 2
    mirror_seconds: float = 30.0
    """For a document of a mirror: then another is asked."""
    least_bytes_per_second: int = 16 * 2**10
    """A download that is slower, after its first minute, is given up."""
    grace_seconds: float = 60.0

    def download_seconds(self, size_bytes: int) -> float:
        """The longest that a download of so many bytes may take."""
        return self.grace_seconds + size_bytes / self.least_bytes_per_second


USUAL_PATIENCE = Patience()
