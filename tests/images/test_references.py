"""References of images: one image has one name, and what is not canonical is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.images.documents.references import (
    BadReference,
    Reference,
    is_reference,
    parse_reference,
)

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("team/tools", "docker.io/team/tools:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/library/busybox:latest", "docker.io/library/busybox:latest"),
        ("docker.io/team/a/b:x", "docker.io/team/a/b:x"),
        ("localhost/tools", "localhost/tools:latest"),
        ("localhost:5000/tools:1", "localhost:5000/tools:1"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ("[::1]:5000/a:b", "[::1]:5000/a:b"),
        ("ghcr.io/a/b_c/d__e/f-----g:V_1.2-3", "ghcr.io/a/b_c/d__e/f-----g:V_1.2-3"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"quay.io/a/b:1@{DIGEST}", f"quay.io/a/b:1@{DIGEST}"),
        ("a" * 64 + "/x", f"docker.io/{'a' * 64}/x:latest"),
        ("xn--bcher-kva.example/a", "xn--bcher-kva.example/a:latest"),
    ],
)
def test_what_may_be_left_out_is_filled_in_and_nothing_else_is_changed(
    text: str, canonical: str
) -> None:
    reference = parse_reference(text)

    assert str(reference) == canonical
    assert parse_reference(canonical) == reference


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "in its path"),
        ("Busybox", "in its path"),
        ("Team/tools", "capitals"),
        ("GHCR.io/a", "capitals"),
        ("index.docker.io/library/busybox", "canonical name of that registry is docker.io"),
        ("registry-1.docker.io/library/busybox", "docker.io"),
        ("a//b", "in its path"),
        ("/a", "in its path"),
        ("a/", "in its path"),
        ("ghcr.io/", "in its path"),
        ("a..b", "in its path"),
        ("a___b", "in its path"),
        ("a/../b", "in its path"),
        ("ghcr.io/../b", "in its path"),
        ("https://ghcr.io/a", "for a port"),
        ("ghcr.io:0/a", "for a port"),
        ("ghcr.io:080/a", "for a port"),
        ("ghcr.io:65536/a", "for a port"),
        ("ghcr.io:/a", "for a port"),
        ("-a.io/b", "no host name"),
        ("a_b.io/c", "no host name"),
        ("a..io/c", "no host name"),
        ("ghcr.io./a", "no host name"),
        ("user@ghcr.io/a", "for a digest"),
        ("bücher.example/a", "no host name"),
        ("017.0.0.1/a", "no IPv4 address"),
        ("127.1/a", "no IPv4 address"),
        ("[::1/a", "no host and port"),
        ("[0:0::1]/a", "canonical form of that address is ::1"),
        ("[fe80::1%eth0]/a", "one link"),
        ("busybox:", "for a tag"),
        ("busybox:-1", "for a tag"),
        ("busybox:1\n", "for a tag"),
        ("busybox:" + "1" * 129, "for a tag"),
        ("busybox@", "for a digest"),
        ("busybox@sha256:12", "for a digest"),
        ("busybox@" + DIGEST.upper(), "for a digest"),
        ("busybox@md5:" + "0" * 32, "for a digest"),
        ("busybox@sha256:../../../../etc/passwd", "for a digest"),
        (f"busybox@{DIGEST}@{DIGEST}", "for a digest"),
        ("a" * 64, "identifier"),
        ("ghcr.io/" + "a" * 250, "more than 255"),
    ],
)
@pytest.mark.attack(67, 71)
def test_what_is_not_canonical_is_refused_and_told_why(text: str, fault: str) -> None:
    with pytest.raises(BadReference, match=fault):
        parse_reference(text)


def test_a_digest_is_asked_for_rather_than_a_tag() -> None:
    assert parse_reference(f"a:b@{DIGEST}").target == DIGEST
    assert parse_reference("a:b").target == "b"


def test_docker_io_is_answered_for_by_its_registry() -> None:
    assert parse_reference("busybox").registry == "registry-1.docker.io"
    assert parse_reference("ghcr.io/a").registry == "ghcr.io"


_component = st.from_regex(r"[a-z0-9]{1,8}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
_references = st.builds(
    Reference,
    domain=st.sampled_from(["docker.io", "localhost", "a.example:81", "10.0.0.1:5000", "[::1]"]),
    path=st.lists(_component, min_size=2, max_size=4).map("/".join),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    digest=st.none() | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
)


@settings(deadline=None, database=None)
@given(_references)
def test_every_reference_is_read_as_it_was_written(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert is_reference(str(reference))


@settings(deadline=None, database=None)
@given(st.text(alphabet="aA0.-_/:@[]% \n\0é", max_size=40))
def test_any_text_is_refused_or_has_one_canonical_form(text: str) -> None:
    try:
        reference = parse_reference(text)
    except BadReference:
        return

    assert parse_reference(str(reference)) == reference
    assert ".." not in str(reference)
    assert str(reference).isprintable()
