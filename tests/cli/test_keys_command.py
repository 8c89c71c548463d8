"""`sandboxd keys` and `migrate` on the database of a data directory, without a service."""

import json
import os
from pathlib import Path

import pytest
from command_line import Outcome, sandboxd

pytestmark = pytest.mark.skipif(os.geteuid() == 0, reason="they refuse root")


def keys(data_dir: Path, *words: str) -> Outcome:
    return sandboxd("keys", *words, "--data-dir", str(data_dir))


def test_the_first_key_is_made_before_there_is_a_database(tmp_path: Path) -> None:
    made = keys(tmp_path / "new", "create", "ci", "--expires", "90d")
    listed = keys(tmp_path / "new", "list")

    assert made.code == 0
    assert made.output.startswith("sbx_")
    assert made.output.count("\n") == 1
    head, line = listed.output.splitlines()
    assert head.split("\t")[:4] == ["key", "name", "tenant", "scopes"]
    assert line.split("\t")[1:4] == ["ci", "default", "jobs:read,jobs:write"]
    assert made.output.strip() not in listed.output


def test_only_their_owner_may_enter_a_new_data_directory(tmp_path: Path) -> None:
    keys(tmp_path / "new", "list")

    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_key_is_revoked_by_its_id(tmp_path: Path) -> None:
    made = json.loads(keys(tmp_path, "create", "ci", "--scope", "admin", "--json").output)

    revoked = keys(tmp_path, "revoke", made["id"])
    (listed,) = json.loads(keys(tmp_path, "list", "--json").output)

    assert revoked.output == f"revoked {made['id']}\n"
    assert listed["revoked_at"]
    assert "key" not in listed


def test_a_key_that_is_not_there_cannot_be_revoked(tmp_path: Path) -> None:
    ended = keys(tmp_path, "revoke", "key_absent")

    assert ended.code == 1
    assert "keys list" in ended.errors


@pytest.mark.parametrize("words", [["", "--tenant", "a"], ["x", "--tenant", "Not This"]])
def test_a_wrong_name_or_tenant_is_refused(tmp_path: Path, words: list[str]) -> None:
    ended = keys(tmp_path, "create", *words)

    assert ended.code == 2
    assert "name: must not be empty" in ended.errors or "tenant: must have the form" in ended.errors


def test_migrating_tells_what_it_did_and_twice_is_harmless(tmp_path: Path) -> None:
    def migrate(*words: str) -> Outcome:
        return sandboxd("migrate", *words, "--data-dir", str(tmp_path))

    before = migrate("--check")
    first = migrate()
    second = json.loads(migrate("--json").output)
    after = migrate("--check")

    assert (before.code, after.code) == (1, 0)
    assert "has to go from nothing to" in before.output
    assert "went from nothing to" in first.output
    assert (second["changed"], second["pending"]) == (False, False)
    assert "up to date" in after.output


def test_a_key_may_have_quotas_of_its_own(tmp_path: Path) -> None:
    quotas = ("--quota", "max_concurrency=2", "--quota", "images=host,python-*")
    made = json.loads(keys(tmp_path, "create", "ci", *quotas, "--json").output)
    listed = keys(tmp_path, "list").output

    assert made["quotas"]["max_concurrency"] == 2
    assert made["quotas"]["images"] == ["host", "python-*"]
    assert made["quotas"]["max_queued"] == 0
    assert "max_concurrency=2 images=host,python-*" in listed


@pytest.mark.parametrize(
    "word",
    ["max_concurrency", "most=1", "max_queued=few", "max_queued=-1", "cpu_seconds_per_day=inf"],
)
def test_a_quota_that_is_none_is_refused(tmp_path: Path, word: str) -> None:
    ended = keys(tmp_path, "create", "ci", "--quota", word)

    assert ended.code == 2
    assert "--quota" in ended.errors
