"""Patterns of images: a star means what whoever wrote it meant."""

import pytest

from sandboxd.quotas.image_patterns import matches_any

DIGEST = "sha256:" + 64 * "a"


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("host", "host"),
        ("python-3.13", "python-*"),
        ("docker.io/library/python:3.13", "docker.io/library/*"),
        ("docker.io/library/python:3.13", "docker.io/library/python:3.*"),
        ("docker.io/library/python:3.13", "*"),
        ("docker.io/library/python:3.13", "docker.io/*"),
        (f"ghcr.io/team/a/b@{DIGEST}", "ghcr.io/team/*"),
        ("registry.example.com/x", "*.example.com/*"),
        ("10.0.0.5:5000/x", "10.0.0.5:5000/*"),
        ("[2001:db8::1]:5000/x", "[2001:db8::1]:5000/*"),
    ],
)
def test_a_pattern_has_what_it_is_meant_for(name: str, pattern: str) -> None:
    assert matches_any(name, ["nothing", pattern])


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("evil.test/x.example.com/y", "*.example.com/*"),
        ("evil.test/docker.io/library/python", "*docker.io/library/*"),
        ("docker.io/library/python", "python"),
        ("docker.io/library/python", "library/python"),
        ("docker.io/Library/python", "docker.io/library/*"),
        ("docker.io.evil.test/library/python", "docker.io/library/*"),
        ("docker.io/library", "docker.io/library/*"),
        ("10.0.0.5:50000/x", "10.0.0.5:5000/*"),
        ("2/x", "[2001:db8::1]:5000/*"),
        ("host", "docker.io/*"),
    ],
)
def test_a_pattern_has_nothing_else(name: str, pattern: str) -> None:
    assert not matches_any(name, [pattern])


def test_no_pattern_has_anything() -> None:
    assert not matches_any("host", [])
