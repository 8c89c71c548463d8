"""`sandboxd doctor`: what this host offers and lacks, each lack with the command that mends it."""

import os
import tempfile
from typing import Any

import click

from sandboxd.cli.options import config_option, data_dir_option, json_option, load
from sandboxd.cli.output import print_json, print_table
from sandboxd.cli.setup import find_program
from sandboxd.isolation.features import Feature, Status, probe_features
from sandboxd.isolation.known_bugs import (
    probe_kernel_fixes,
    probe_runc,
    read_runc_changelog,
    read_runc_version,
)
from sandboxd.isolation.runtime_features import probe_runtime
from sandboxd.quotas.disks import HOST_FILES, find_disks
from sandboxd.quotas.host import (
    CONTROLLERS,
    CgroupVersion,
    Controller,
    Host,
    current_user,
    probe_host,
)
from sandboxd.settings import Settings
from sandboxd.settings_runtimes import oci_runtimes

_NEEDED_CONTROLLERS = frozenset(CONTROLLERS) - {"cpuacct"}
"""Without `cpuacct` the CPU time is limited per process by an rlimit: less exact, still safe."""


@click.command()
@config_option
@data_dir_option
@json_option
def doctor(config_file: str | None, data_dir: str | None, as_json: bool) -> int:
    """Check what this host offers and what it lacks.

    Exit code 1 if jobs could not run safely. Warnings say what is less good, and do not change it.
    """
    flags: dict[str, Any] = {"store.data_dir": data_dir}
    loaded = load(flags, config_file)
    features = [in_reach(feature) for feature in examine(loaded.settings)]
    safe = all(feature.status is not Status.MISSING for feature in features)
    if as_json:
        print_json({"ok": safe, "features": [feature._asdict() for feature in features]})
    else:
        print_table(
            ("feature", "status", "seen", "remedy"),
            [(each.name, each.status, each.detail, each.remedy) for each in features],
            empty="",
        )
    return 0 if safe else 1


def examine(settings: Settings) -> list[Feature]:
    """Every feature, in the order of the table. As root only that: see `probe_features`."""
    user = current_user()
    host = probe_host(user)
    show_cgroup = host.controllers["memory"].version is CgroupVersion.V2
    features = probe_features(
        id_map=settings.isolation.id_map,
        show_cgroup=show_cgroup,
        egress=settings.network.egress == "on",
    )
    if os.geteuid() == 0:
        return features
    features.append(probe_kernel_fixes(host.kernel_release))
    if (runc := probe_runc(read_runc_version(), read_runc_changelog())) is not None:
        features.append(runc)
    features += [
        probe_runtime(runtime, id_map=settings.isolation.id_map, show_cgroup=show_cgroup)
        for runtime in oci_runtimes(settings).values()
    ]
    controllers = [examine_controller(host.controllers[name], user) for name in CONTROLLERS]
    data_dir = examine_data_dir(settings.store.data_dir, user)
    rates = examine_disk_rates(host, settings, user)
    cpusets = examine_cpusets(host, settings, user)
    return [*features, *controllers, examine_swap(host), rates, cpusets, data_dir]


def examine_controller(controller: Controller, user: str) -> Feature:
    """Where a cgroup controller lives, and whether we may use it."""
    name = f"cgroup {controller.name}"
    status = Status.MISSING if controller.name in _NEEDED_CONTROLLERS else Status.WARNING
    if controller.version is None:
        state = "turned off at boot" if controller.disabled else "not in this kernel or container"
        remedy = f"boot with cgroup_enable={controller.name}"
        return Feature(name, status, state, remedy)
    place = f"{controller.version} at {controller.mount}"
    if controller.directory is None:
        if controller.version == "cgroup2":
            remedy = f"start it as a service: {_start_command(user)}"
        else:
            remedy = f"as root: sandboxd setup --user {user}"
        return Feature(name, status, f"{place}, not delegated to {user}", remedy)
    return Feature(name, Status.OK, f"{place}, ours: {controller.directory}", "")


def examine_swap(host: Host) -> Feature:
    """Swap makes a memory limit a lie where cgroups do not count it."""
    memory = host.controllers["memory"]
    counted = memory.directory is None or any(
        os.path.exists(f"{memory.directory}/{name}")
        for name in ("memory.memsw.limit_in_bytes", "memory.swap.max")
    )
    if host.swap_bytes and not counted:
        detail = "there is swap, but cgroups do not count it"
        return Feature(
            "swap", Status.MISSING, detail, "as root: swapoff -a, or boot with swapaccount=1"
        )
    return Feature("swap", Status.OK, "limited by cgroups" if host.swap_bytes else "none", "")


def examine_disk_rates(host: Host, settings: Settings, user: str) -> Feature:
    """Whether `limits.io_bytes_per_second` can be enforced. A job that asks for it is refused where it cannot."""
    name = "disk rates"
    disks = find_disks((settings.store.data_dir, HOST_FILES))
    if disks.untold:
        detail = f"the disk of {', '.join(disks.untold)} cannot be told: no rate is limited"
        return Feature(name, Status.WARNING, detail, "keep it on a file system of a disk")
    if host.controllers["io"].directory is not None:
        return Feature(name, Status.OK, f"cgroup2, of {', '.join(disks.numbers)}", "")
    if not (settings.limits.io_bytes_per_second or settings.ceilings.io_bytes_per_second):
        return Feature(name, Status.OK, "not limited: no limit or ceiling is set", "")
    if host.controllers["blkio"].directory is not None:
        return Feature(name, Status.OK, f"cgroup1, of {', '.join(disks.numbers)}", "")
    detail = f"neither io (v2) nor blkio (v1) is delegated to {user}: no rate is limited"
    return Feature(name, Status.WARNING, detail, f"as root: sandboxd setup --user {user}")


def examine_cpusets(host: Host, settings: Settings, user: str) -> Feature:
    """Whether jobs can name their CPUs. One that does is refused where they cannot."""
    name = "CPU sets"
    if not settings.isolation.cpusets:
        return Feature(name, Status.OK, "not offered: isolation.cpusets is off", "")
    controller = host.controllers["cpuset"]
    if controller.directory is None or controller.version is None:
        detail = f"cpuset is not delegated to {user}: no job can name its CPUs"
        return Feature(name, Status.WARNING, detail, f"as root: sandboxd setup --user {user}")
    return Feature(name, Status.OK, controller.version.value, "")


def examine_data_dir(directory: str, user: str) -> Feature:
    """Whether the record can be kept: tried with a file, in the directory or in the first parent that exists."""
    parent = directory
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        remedy = f"as root: install -d -m 0700 -o {user} {directory}"
        return Feature("data directory", Status.MISSING, f"{parent}: {error.strerror}", remedy)
    detail = f"{directory} is writable" if parent == directory else f"{directory} can be made"
    return Feature("data directory", Status.OK, detail, "")


def in_reach(feature: Feature) -> Feature:
    """From a source tree no `sandboxd` is on the path: there it is a target of the Makefile that sets up."""
    if find_program() is not None:
        return feature
    remedy = feature.remedy.replace("sandboxd setup --user ", "make setup FOR=")
    return feature._replace(remedy=remedy)


def _start_command(user: str) -> str:
    if user == "sandboxd":
        return "as root: systemctl start sandboxd"
    return "systemd-run --user --scope -p Delegate=yes sandboxd serve"
