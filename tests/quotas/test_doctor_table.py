"""`sandboxd doctor`: each feature of this host, and what each lack would say."""

import json
import os
import re
from pathlib import Path

import msgspec
import pytest
from sandbox_bench import launchers_changed

from sandboxd.cli import apparmor
from sandboxd.cli.doctor import (
    examine_controller,
    examine_cpusets,
    examine_data_dir,
    examine_disk_rates,
    examine_swap,
)
from sandboxd.cli.main import run_command_line
from sandboxd.isolation import idmap
from sandboxd.isolation.features import (
    Status,
    probe_account,
    probe_core_pattern,
    probe_groups,
    probe_kernel,
    probe_sandbox,
    probe_subordinate_ids,
    probe_user_namespaces,
    run_trial,
)
from sandboxd.quotas.disks import HOST_FILES, find_disks
from sandboxd.quotas.host import CgroupVersion, Controller, Host
from sandboxd.settings import CEILINGS, IsolationSettings, Settings, StoreSettings

ordinary_user = pytest.mark.skipif(os.geteuid() == 0, reason="root is told to be somebody else")


@pytest.mark.host
@pytest.mark.usefixtures("host")
def test_a_prepared_host_can_run_jobs_safely(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = run_command_line(["doctor", "--json", "--data-dir", str(tmp_path)])

    report = json.loads(capsys.readouterr().out)
    names = [
        feature["name"]
        for feature in report["features"]
        if feature["name"] not in ("runc", "egress")
    ]
    assert (code, report["ok"]) == (0, True)
    assert names == [
        "account", "kernel", "user namespaces", "subordinate ids", "supplementary groups", "namespaces", "overlay",
        "proc and sysfs", "sandbox", "core dumps", "/dev/net/tun", "kernel fixes", "cgroup memory", "cgroup cpu", "cgroup cpuacct", "cgroup pids", "swap",
        "disk rates", "CPU sets", "data directory",
    ]  # fmt: skip


@ordinary_user
def test_in_a_pipe_each_feature_is_a_line_of_four_fields(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_command_line(["doctor", "--data-dir", str(tmp_path)])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t") == ["feature", "status", "seen", "remedy"]
    assert {len(line.split("\t")) for line in lines} == {4}


@ordinary_user
def test_a_data_directory_that_cannot_be_written_fails(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command_line(["doctor", "--json", "--data-dir", "/proc/sandboxd"])

    report = json.loads(capsys.readouterr().out)
    lacking = [each["name"] for each in report["features"] if each["status"] == "missing"]
    assert code == 1
    assert "data directory" in lacking


@pytest.mark.as_root
def test_root_is_told_to_be_somebody_else(capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command_line(["doctor"])

    assert code == 1
    assert "runuser -u sandboxd" in capsys.readouterr().out


def test_running_as_root_is_not_safe() -> None:
    assert probe_account(0, "root").status is Status.MISSING
    assert probe_account(1000, "alice").status is Status.OK


@pytest.mark.parametrize(
    ("release", "status"),
    [
        ("5.10.0-28-amd64", Status.MISSING),
        ("5.12.0", Status.WARNING),
        ("6.1.0-18-amd64", Status.WARNING),
        ("6.6.0", Status.OK),
        ("strange", Status.MISSING),
    ],
)
def test_a_kernel_is_judged_by_its_version(release: str, status: Status) -> None:
    assert probe_kernel(release).status is status


@pytest.mark.host
@pytest.mark.usefixtures("host")
def test_with_a_single_id_the_walls_stand_too() -> None:
    outcome = run_trial(None)

    assert set(outcome.values()) == {"ok"}
    assert list(outcome)[-1] == "sysfs"


@pytest.mark.host
@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("ids", [None, idmap.find_range()], ids=["single", "range"])
def test_a_whole_sandbox_is_built_and_timed(ids: idmap.IdRange | None) -> None:
    feature = probe_sandbox(ids, show_cgroup=False)

    assert feature.status is Status.OK
    assert re.fullmatch(r"built, used and gone in \d+ ms", feature.detail)


@pytest.mark.host
@pytest.mark.usefixtures("host")
def test_a_sandbox_that_fails_names_its_step_and_the_reason() -> None:
    """What no part shows by itself: each step before it works, and yet no sandbox stands."""
    with launchers_changed("init.syscalls.sethostname = lambda name: init.os.stat('/nowhere')"):
        feature = probe_sandbox(idmap.find_range(), show_cgroup=False)

    assert feature.status is Status.MISSING
    assert feature.detail.startswith("set_hostname: ")
    assert "No such file or directory: '/nowhere'" in feature.detail
    assert feature.remedy


@pytest.mark.parametrize(
    ("groups", "single", "status"),
    [
        ([], True, Status.OK),
        (["docker"], False, Status.OK),
        (["adm", "docker"], True, Status.WARNING),
    ],
)
def test_groups_that_jobs_would_keep_are_a_warning(
    groups: list[str], single: bool, status: Status
) -> None:
    feature = probe_groups(groups, single=single, user="alice")

    assert feature.status is status
    assert ("adm, docker" in feature.detail) == (status is Status.WARNING)


@pytest.mark.parametrize(
    ("pattern", "helper"),
    [
        ("core", None),
        ("/var/crash/core.%p", None),
        ("", None),
        ("|/usr/lib/systemd/systemd-coredump %P %u", "/usr/lib/systemd/systemd-coredump"),
        ("| ", "a program"),
    ],
)
def test_a_core_pattern_that_pipes_is_a_warning(pattern: str, helper: str | None) -> None:
    feature = probe_core_pattern(pattern)

    assert feature.status is (Status.WARNING if helper else Status.OK)
    assert helper is None or f"starts {helper} on the host" in feature.detail


def test_a_user_namespace_that_is_refused_is_missing() -> None:
    feature = probe_user_namespaces({"user": "Operation not permitted"}, "alice")

    assert feature.status is Status.MISSING
    assert feature.detail
    assert feature.remedy


@pytest.fixture
def restricted(tmp_path: Path) -> str:
    """/proc of an Ubuntu that lets only programs with a profile use user namespaces."""
    settings = {
        "user/max_user_namespaces": "63204",
        "kernel/unprivileged_userns_clone": "1",
        "kernel/apparmor_restrict_unprivileged_userns": "1",
    }
    for name, value in settings.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return str(tmp_path)


def test_where_apparmor_restricts_user_namespaces_setup_loads_a_profile(restricted: str) -> None:
    outcome = {"user": "ok", "ids": "ok", "namespaces": "Operation not permitted"}
    feature = probe_user_namespaces(outcome, "alice", restricted)

    assert feature.status is Status.MISSING
    assert "kernel.apparmor_restrict_unprivileged_userns is 1" in feature.detail
    assert feature.remedy == "as root, to load a profile: sandboxd setup --user alice"


def test_with_a_profile_the_restriction_does_no_harm(restricted: str) -> None:
    outcome = {"user": "ok", "ids": "ok", "namespaces": "ok"}

    assert probe_user_namespaces(outcome, "alice", restricted).status is Status.OK
    assert apparmor.restricts(restricted)
    assert not apparmor.restricts(f"{restricted}/sys")


def test_without_subordinate_ids_there_is_a_warning_and_the_command() -> None:
    feature = probe_subordinate_ids(None, {}, "alice")

    assert feature.status is Status.WARNING
    assert "single id" in feature.detail
    assert feature.remedy.endswith(("sandboxd setup --user alice", "apt-get install uidmap"))


def test_a_controller_says_where_it_lives_and_how_to_get_it() -> None:
    memory = Controller(name="memory", version=CgroupVersion.V1, mount="/cg/memory")
    feature = examine_controller(memory, "alice")

    assert feature.status is Status.MISSING
    assert feature.detail == "cgroup1 at /cg/memory, not delegated to alice"
    assert feature.remedy == "as root: sandboxd setup --user alice"


def test_a_controller_of_v2_comes_from_systemd() -> None:
    pids = Controller(name="pids", version=CgroupVersion.V2, mount="/sys/fs/cgroup")

    assert "Delegate=yes" in examine_controller(pids, "alice").remedy
    assert "systemctl start sandboxd" in examine_controller(pids, "sandboxd").remedy


def test_cpuacct_may_be_absent() -> None:
    absent = examine_controller(Controller(name="cpuacct", version=None), "alice")
    turned_off = Controller(name="memory", version=None, disabled=True)

    assert absent.status is Status.WARNING
    assert examine_controller(turned_off, "alice").status is Status.MISSING
    assert examine_controller(turned_off, "alice").remedy == "boot with cgroup_enable=memory"


def test_swap_that_cgroups_do_not_count_is_missing(tmp_path: Path) -> None:
    memory = Controller(
        name="memory", version=CgroupVersion.V1, mount="/cg", directory=str(tmp_path)
    )
    host = Host(
        cpus=1,
        memory_bytes=2**30,
        swap_bytes=2**20,
        kernel_release="6.1.0",
        kernel=(6, 1),
        controllers={"memory": memory},
        rlimits={},
    )
    uncounted = examine_swap(host).status
    (tmp_path / "memory.memsw.limit_in_bytes").touch()

    assert uncounted is Status.MISSING
    assert examine_swap(host).status is Status.OK


@pytest.mark.parametrize(
    ("data_dir", "ceiling", "io", "blkio", "status", "detail"),
    [
        ("/proc/none", 0, "/ours", None, Status.WARNING, "the disk of /proc/none cannot be told"),
        ("/dev/shm/x", 0, "/ours", None, Status.OK, "cgroup2, of "),
        ("/dev/shm/x", 0, None, None, Status.OK, "no limit or ceiling is set"),
        ("/dev/shm/x", 2**20, None, "/ours", Status.OK, "cgroup1, of "),
        ("/dev/shm/x", 2**20, None, None, Status.WARNING, "neither io (v2) nor blkio (v1)"),
    ],
)
def test_rates_of_disks_say_why_they_are_not_limited(
    data_dir: str, ceiling: int, io: str | None, blkio: str | None, status: Status, detail: str
) -> None:
    if find_disks([HOST_FILES]).untold:
        pytest.skip("the disk of this host cannot be told")
    host = Host(
        cpus=1,
        memory_bytes=2**30,
        swap_bytes=0,
        kernel_release="6.1.0",
        kernel=(6, 1),
        controllers={
            "io": Controller(name="io", version=CgroupVersion.V2, directory=io),
            "blkio": Controller(name="blkio", version=CgroupVersion.V1, directory=blkio),
        },
        rlimits={},
    )
    settings = Settings(
        store=StoreSettings(data_dir=data_dir),
        ceilings=msgspec.structs.replace(CEILINGS, io_bytes_per_second=ceiling),
    )

    feature = examine_disk_rates(host, settings, "alice")

    assert feature.status is status
    assert detail in feature.detail


@pytest.mark.parametrize(
    ("offered", "directory", "status", "detail"),
    [
        (False, None, Status.OK, "isolation.cpusets is off"),
        (True, None, Status.WARNING, "not delegated to alice"),
        (True, "/ours", Status.OK, "cgroup2"),
    ],
)
def test_cpu_sets_say_why_no_job_can_have_one(
    offered: bool, directory: str | None, status: Status, detail: str
) -> None:
    controller = Controller(name="cpuset", version=CgroupVersion.V2, directory=directory)
    host = Host(
        cpus=1,
        memory_bytes=2**30,
        swap_bytes=0,
        kernel_release="6.1.0",
        kernel=(6, 1),
        controllers={"cpuset": controller},
        rlimits={},
    )

    feature = examine_cpusets(host, Settings(isolation=IsolationSettings(cpusets=offered)), "alice")

    assert feature.status is status
    assert detail in feature.detail


def test_a_data_directory_that_can_be_made_is_fine(tmp_path: Path) -> None:
    feature = examine_data_dir(f"{tmp_path}/not/yet", "alice")

    assert feature.status is Status.OK
    assert not (tmp_path / "not").exists()
