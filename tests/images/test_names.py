"""What names mean, as several processes write it and each of them has read it before."""

from pathlib import Path

import pytest

from sandboxd.errors import NotFound
from sandboxd.images.store.names import Names, Record, RunAs

NAME = "registry.example/team/tools:1"


def record(name: str = NAME, owner: str = "", digit: str = "0", env: str = "") -> Record:
    return Record(
        name=name,
        digest="sha256:" + digit * 64,
        size_bytes=0,
        created_at=0.0,
        source="registry",
        owner=owner,
        tenants=(owner,) if owner else (),
        run_as=RunAs(env={"WORD": env}, workdir="/"),
    )


def digits(names: Names) -> dict[str, str]:
    return {each.name: each.digest[-1] for each in names.all()}


@pytest.mark.parametrize("env", ["", "x" * 2**20], ids=["small", "large"])
def test_what_another_process_writes_is_seen_at_once(env: str, tmp_path: Path) -> None:
    ours, theirs = Names(tmp_path), Names(tmp_path)
    theirs.write(record(digit="1", env=env))
    theirs.write(record("imported", digit="2", env=env))
    assert digits(ours) == {"imported": "2", NAME: "1"}

    theirs.write(record(digit="3", env=env))
    theirs.forget(record("imported"))
    assert digits(ours) == {NAME: "3"}
    assert ours.all()[0].run_as == RunAs(env={"WORD": env}, workdir="/")

    theirs.forget(record())
    assert digits(ours) == {}


def test_a_use_is_no_change(tmp_path: Path) -> None:
    names = Names(tmp_path)
    names.write(record())
    before = names.all()
    names.used(record(), 1000.0)

    assert names.all() == before
    assert names.last_used(record()) == 1000.0


@pytest.mark.attack(71)
def test_what_is_one_tenants_is_beside_what_is_for_all(tmp_path: Path) -> None:
    names = Names(tmp_path)
    names.write(record(digit="1"))
    names.write(record(digit="2", owner="acme"))

    assert names.read(NAME, "acme").digest[-1] == "2"
    assert names.read(NAME, "other").digest[-1] == "1"
    names.forget(record())
    assert names.read(NAME).digest[-1] == "2"
    with pytest.raises(NotFound):
        names.read(NAME, "other")
    with pytest.raises(NotFound):
        names.forget(record())
