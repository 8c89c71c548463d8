"""The cgroup steps of `sandboxd setup`: what they would do, and that they find themselves done."""

import os
import pwd
from pathlib import Path

import pytest

from sandboxd.quotas.delegation import (
    DelegateDirectory,
    EnableControllers,
    FillCpuset,
    plan,
    plan_cgroup1,
    plan_cgroup2,
)
from sandboxd.quotas.host import CgroupVersion, Controller, Host

ME = pwd.getpwuid(os.geteuid()).pw_name


def controllers(**versions: CgroupVersion | None) -> dict[str, Controller]:
    mounts = {CgroupVersion.V2: "/cgroup2", None: None}
    return {
        name: Controller(
            name=name,
            version=versions.get(name),
            mount=mounts.get(versions.get(name), f"/cgroup1/{name}"),
        )
        for name in ("memory", "cpu", "cpuacct", "pids", "io", "freezer", "blkio", "cpuset")
    }


def test_each_controller_goes_where_it_lives() -> None:
    hybrid = controllers(memory=CgroupVersion.V1, pids=CgroupVersion.V1, cpu=CgroupVersion.V2)

    assert [step.describe() for step in plan_cgroup1(hybrid, "alice")] == [
        "give the cgroup directory /cgroup1/memory/sandboxd/alice to alice",
        "give the cgroup directory /cgroup1/pids/sandboxd/alice to alice",
    ]
    assert [step.describe() for step in plan_cgroup2(hybrid, "alice")] == [
        "enable cpu below /cgroup2",
        "enable cpu below /cgroup2/sandboxd",
        "give the cgroup directory /cgroup2/sandboxd/alice to alice",
    ]


def test_a_v2_mount_without_our_controllers_is_left_alone() -> None:
    assert plan_cgroup2(controllers(memory=CgroupVersion.V1), "alice") == []
    assert plan_cgroup2(controllers(cpuacct=CgroupVersion.V2), "alice") == []


def test_with_systemd_v2_is_left_to_it() -> None:
    v2 = [step for step in plan(ME, systemd=True) if "cgroup2" in repr(step)]

    assert v2 == []


def test_directories_shared_by_two_controllers_are_given_once(tmp_path: Path) -> None:
    (tmp_path / "cpu,cpuacct").mkdir()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")
    shared = {
        **controllers(),
        "cpu": Controller(name="cpu", version=CgroupVersion.V1, mount=f"{tmp_path}/cpu"),
        "cpuacct": Controller(
            name="cpuacct", version=CgroupVersion.V1, mount=f"{tmp_path}/cpu,cpuacct"
        ),
    }

    assert len(plan_cgroup1(shared, "alice")) == 1


def test_a_cpu_set_is_filled_from_the_one_above(tmp_path: Path) -> None:
    for directory, cpus in (("", "0-3"), ("sandboxd", ""), ("sandboxd/alice", "")):
        (tmp_path / directory).mkdir(exist_ok=True)
        (tmp_path / directory / "cpuset.cpus").write_text(cpus)
        (tmp_path / directory / "cpuset.mems").write_text(cpus and "0")
    v1 = Controller(name="cpuset", version=CgroupVersion.V1, mount=str(tmp_path))
    (step,) = [
        each
        for each in plan_cgroup1({**controllers(), "cpuset": v1}, "alice")
        if isinstance(each, FillCpuset)
    ]
    before = step.done()

    step.execute()

    assert (before, step.done()) == (False, True)
    assert (tmp_path / "sandboxd/alice/cpuset.cpus").read_text() == "0-3"
    assert (tmp_path / "sandboxd/alice/cpuset.mems").read_text() == "0"


@pytest.mark.host
def test_on_a_prepared_host_every_step_is_done(host: Host) -> None:
    assert [step.describe() for step in plan(ME) if not step.done()] == []


def test_for_a_user_that_does_not_exist_yet_nothing_is_done() -> None:
    step = DelegateDirectory(directory="/", version=CgroupVersion.V1, user="nobody-has-this-name")

    assert step.done() is False


def test_a_directory_is_made_and_found_done(tmp_path: Path) -> None:
    directory = tmp_path / "sandboxd" / ME
    directory.mkdir(parents=True)
    for name in ("cgroup.procs", "tasks"):
        (directory / name).touch()
    step = DelegateDirectory(directory=str(directory), version=CgroupVersion.V1, user=ME)
    step.execute()

    assert step.done() is True


def test_enabling_is_done_when_every_controller_is_on(tmp_path: Path) -> None:
    step = EnableControllers(directory=str(tmp_path), controllers=("cpu", "pids"))
    before = step.done()
    (tmp_path / "cgroup.subtree_control").write_text("cpuset cpu pids\n")

    assert before is False
    assert step.done() is True
