"""The lock files say what pyproject.toml asks for, with hashes, and name no package index."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TREE = Path(__file__).parents[2]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())
LOCKS = {
    "requirements.lock": PROJECT["project"]["dependencies"],
    "requirements-dev.lock": PROJECT["project"]["dependencies"]
    + PROJECT["dependency-groups"]["dev"],
}


def pins(lock: str) -> dict[str, set[str]]:
    """Versions by name; more than one where they differ by Python version."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", (TREE / lock).read_text(), re.MULTILINE
    ):
        versions.setdefault(canonicalize_name(name), set()).add(version)
    return versions


@pytest.mark.parametrize("lock", LOCKS)
def test_every_dependency_is_pinned_to_a_version_that_was_asked_for(lock: str) -> None:
    pinned = pins(lock)

    for text in LOCKS[lock]:
        wish = Requirement(text)
        versions = pinned[canonicalize_name(wish.name)]
        assert all(wish.specifier.contains(version) for version in versions), text


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes(lock: str) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", (TREE / lock).read_text())

    assert [entry for entry in entries if "==" in entry and "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_no_address_of_a_package_index_is_recorded(lock: str) -> None:
    text = (TREE / lock).read_text()

    assert "://" not in text
    assert not re.search(r"^--(?!hash)|--(extra-)?index-url|--find-links", text, re.MULTILINE)


def test_both_locks_agree() -> None:
    service, development = (pins(lock) for lock in LOCKS)

    assert service.items() <= development.items()
