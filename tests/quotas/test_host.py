"""Where a controller lives, told from the kernel's own files: each text here is one of a real host."""

import os

import psutil

from sandboxd.quotas.host import (
    CgroupMount,
    CgroupVersion,
    find_own_cgroup2,
    locate,
    parse_kernel,
    parse_mountinfo,
    parse_proc_cgroups,
    probe_host,
)

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
PROC_CGROUPS = """\
#subsys_name	hierarchy	num_cgroups	enabled
cpu	1	1	1
cpuacct	1	1	1
memory	4	13	0
hugetlb	0	1	1
pids	8	1	1
"""


def test_a_controller_of_a_v1_hierarchy_is_found_by_its_super_block_options() -> None:
    mounts = list(parse_mountinfo(HYBRID))

    assert locate("cpuacct", mounts, {}) == (CgroupVersion.V1, mounts[0])
    assert locate("memory", mounts, {}) == (CgroupVersion.V1, mounts[1])


def test_a_v2_mount_says_nothing_about_what_lives_there() -> None:
    mounts = list(parse_mountinfo(HYBRID))

    assert mounts[-1].version is CgroupVersion.V2
    assert locate("pids", mounts, {}) == (None, None)


def test_a_controller_of_v2_is_found_by_cgroup_controllers(tmp_path: os.PathLike[str]) -> None:
    with open(f"{tmp_path}/cgroup.controllers", "w") as file:
        file.write("cpuset cpu io memory pids\n")
    mount = CgroupMount("/", str(tmp_path), CgroupVersion.V2, frozenset({"rw", "nsdelegate"}))

    assert locate("memory", [mount], {}) == (CgroupVersion.V2, mount)
    assert locate("cpuacct", [mount], {}) == (CgroupVersion.V2, mount)
    assert locate("hugetlb", [mount], {}) == (None, None)


def test_a_controller_that_was_turned_off_at_boot_is_absent() -> None:
    table = parse_proc_cgroups(PROC_CGROUPS)

    assert table == {"cpu": 1, "cpuacct": 1, "memory": 0, "hugetlb": 1, "pids": 1}
    assert locate("memory", list(parse_mountinfo(HYBRID)), table) == (None, None)


def test_a_mount_point_with_a_space_is_read_as_it_is() -> None:
    line = r"41 31 0:38 / /mnt/my\040cgroups rw - cgroup2 cgroup2 rw,nsdelegate"

    assert [mount.point for mount in parse_mountinfo(line)] == ["/mnt/my cgroups"]


def test_our_own_v2_cgroup_is_below_the_mount() -> None:
    mount = CgroupMount("/", "/sys/fs/cgroup", CgroupVersion.V2, frozenset())
    text = "4:memory:/x\n0::/system.slice/sandboxd.service\n"

    assert find_own_cgroup2(mount, text) == "/sys/fs/cgroup/system.slice/sandboxd.service"
    assert find_own_cgroup2(mount, "0::/\n") == "/sys/fs/cgroup"


def test_seen_from_the_leaf_the_delegated_subtree_is_the_parent() -> None:
    mount = CgroupMount("/", "/sys/fs/cgroup", CgroupVersion.V2, frozenset())

    assert find_own_cgroup2(mount, "0::/a.scope/supervisor\n") == "/sys/fs/cgroup/a.scope"


def test_a_cgroup_outside_of_the_mount_is_not_ours() -> None:
    mount = CgroupMount("/pod/one", "/sys/fs/cgroup", CgroupVersion.V2, frozenset())

    assert find_own_cgroup2(mount, "0::/pod/one/job\n") == "/sys/fs/cgroup/job"
    assert find_own_cgroup2(mount, "0::/pod/onerous\n") is None
    assert find_own_cgroup2(mount, "0::/../x\n") is None
    assert find_own_cgroup2(mount, "4:memory:/x\n") is None


def test_kernel_releases_of_distributions_are_understood() -> None:
    assert parse_kernel("6.1.0-18-amd64") == (6, 1)
    assert parse_kernel("5.14.0-427.el9.x86_64") == (5, 14)


def test_the_figures_of_this_host_are_those_of_psutil() -> None:
    host = probe_host()

    assert host.memory_bytes == psutil.virtual_memory().total
    assert host.cpus == len(psutil.Process().cpu_affinity())
    assert set(host.controllers) >= {"memory", "cpu", "cpuacct", "pids"}
