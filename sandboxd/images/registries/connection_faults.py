"""Why there is no connection to a registry, in words for who has to mend it; they follow the registry's name."""

import os
import socket
import ssl
from collections.abc import Iterator

_SPEAKS_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"})
_UNKNOWN_AUTHORITY = frozenset({18, 19, 20, 21})
"""Codes of OpenSSL: signed by itself, by somebody who is not known, or by nobody."""


def lasting_fault(error: BaseException, authority: str) -> str | None:
    """What will be the same the next time; None: it may be another the next time."""
    for each in _causes(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            section = f'registries."{authority}".ca_file'
            known = each.verify_code not in _UNKNOWN_AUTHORITY
            remedy = "" if known else f": the certificate of who made it goes into {section}"
            return f"has a certificate that is not trusted: {each.verify_message}{remedy}"
        if isinstance(each, ssl.SSLError) and each.reason in _SPEAKS_NO_TLS:
            section = f'registries."{authority}".insecure'
            return f"does not speak TLS: if plain HTTP is meant, set {section} = true"
    return None


def passing_fault(error: BaseException) -> str:
    """What the system says of it, as far as it says anything."""
    for each in _causes(error):
        if isinstance(each, socket.gaierror):
            return each.strerror or str(each)
        if isinstance(each, OSError) and not isinstance(each, ssl.SSLError) and each.errno:
            return os.strerror(each.errno)
    return str(error) or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """From the first to the last that was raised because of it."""
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return reversed(causes)
