"""References: how an image of a registry is called, in the grammar of https://github.com/distribution/reference.

    REGISTRY[:PORT]/PATH[:TAG][@DIGEST]

What Docker lets people leave out is filled in (`busybox` is `docker.io/library/busybox:latest`), so that one image has one
name. Nothing else is mended: what is written in another way than the canonical one is refused, and told why.
"""

import ipaddress
import re
from typing import NamedTuple

DEFAULT_DOMAIN = "docker.io"
_DEFAULT_NAMESPACE = "library"
_DEFAULT_TAG = "latest"
_DEFAULT_REGISTRY = "registry-1.docker.io"
"""Where docker.io keeps its images."""
_LONGEST_NAME = 255
_LONGEST_HOST = 253
_LARGEST_PORT = 65_535

DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_IDENTIFIER = re.compile(r"[0-9a-f]{64}", re.ASCII)


class BadReference(ValueError):
    """What was written is not a reference; the message follows the words "the reference"."""


class Reference(NamedTuple):
    """An image of a registry. `str` is its canonical form."""

    domain: str
    """Host name or address of the registry, with its port if one was given."""
    path: str
    tag: str | None
    digest: str | None
    """`sha256:…` of a manifest or an index. At least one of tag and digest is there."""

    @property
    def registry(self) -> str:
        """HOST[:PORT] that answers for the domain."""
        return registry_of(self.domain)

    @property
    def target(self) -> str:
        """What the registry is asked for: a digest says more than a tag, which may mean something else tomorrow."""
        target = self.digest or self.tag
        if target is None:
            raise ValueError("a reference has a tag or a digest")
        return target

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.domain}/{self.path}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """The image that is meant. Raises BadReference."""
    rest, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise BadReference(f"has {digest[:80]!r} for a digest: sha256: and 64 of 0-9 a-f")
    domain, path = _split_domain(rest)
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise BadReference(
            f"has {tag[:140]!r} for a tag: at most 128 of A-Z a-z 0-9 _ . -, which does not begin with . or -"
        )
    _check_domain(domain)
    _check_path(path)
    if domain == DEFAULT_DOMAIN and "/" not in path:
        if _IDENTIFIER.fullmatch(path):
            raise BadReference("is 64 hexadecimal digits: that is an identifier, not a name")
        path = f"{_DEFAULT_NAMESPACE}/{path}"
    if len(domain) + 1 + len(path) > _LONGEST_NAME:
        raise BadReference(f"has a name of more than {_LONGEST_NAME} characters")
    return Reference(
        domain, path, tag or (None if digest else _DEFAULT_TAG), digest if digest else None
    )


def registry_of(domain: str) -> str:
    """HOST[:PORT] that answers for the domain of a reference."""
    return _DEFAULT_REGISTRY if domain == DEFAULT_DOMAIN else domain


def is_reference(name: str) -> bool:
    """Whether a name can be that of a registry's image only: one of an imported image has no such characters."""
    return any(character in name for character in "/:@")


def _split_domain(text: str) -> tuple[str, str]:
    """What is before the first slash is a registry only if it cannot be a part of a path on docker.io."""
    first, slash, rest = text.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, text
    looks_like_host = "." in first or ":" in first or first == "localhost"
    # A path has no capitals. Docker takes such a word for a host, too; then it is refused as one.
    if looks_like_host or first != first.lower():
        return first, rest
    return DEFAULT_DOMAIN, text


def _check_domain(domain: str) -> None:
    host, colon, port = _split_port(domain)
    if colon and (not _PORT.fullmatch(port) or int(port) > _LARGEST_PORT):
        raise BadReference(f"has {port[:20]!r} for a port: a number from 1 to {_LARGEST_PORT}")
    if domain in ("index.docker.io", _DEFAULT_REGISTRY):
        raise BadReference(f"names {domain}: the canonical name of that registry is docker.io")
    if host.startswith("["):
        _check_ipv6(host[1:-1])
    elif host != host.lower():
        raise BadReference(f"has capitals in {host[:80]!r}: a host name is in lower case here")
    elif len(host) > _LONGEST_HOST or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise BadReference(f"names {host[:80]!r}, which is no host name")
    elif host.rpartition(".")[2].isdigit():
        # Everything else that ends in a number (0x7f.1, 017.0.0.1) is an address to some, and to others a name.
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise BadReference(f"names {host[:80]!r}, which is no IPv4 address") from None


def _split_port(domain: str) -> tuple[str, str, str]:
    if domain.startswith("["):
        host, bracket, rest = domain.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadReference(f"names {domain[:80]!r}, which is no host and port")
        return host + bracket, rest[:1], rest[1:]
    return domain.partition(":")


def _check_ipv6(text: str) -> None:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise BadReference(f"names {text[:80]!r}, which is no IPv6 address") from None
    if address.scope_id is not None:
        raise BadReference(f"names {text[:80]!r}: an address of one link is no registry's")
    if str(address) != text:
        raise BadReference(f"names {text[:80]!r}: the canonical form of that address is {address}")


def _check_path(path: str) -> None:
    for component in path.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise BadReference(
                f"has {component[:80]!r} in its path: lower-case letters and digits, with single . or _, __ or - between them"
            )
