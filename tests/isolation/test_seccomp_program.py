"""The filter program, run by an interpreter for every call on both architectures (ATTACKS 20, 24-28, 54)."""

import errno
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import bpf
import pytest
from host_tests import host_required

from sandboxd.isolation import seccomp, syscall_numbers
from sandboxd.isolation.launcher_client import filter_digest

MACHINES = ["x86_64", "aarch64"]

# Written down again here, from the document that says what the walls are: not taken from the code that is tested.
BLOCKED = frozenset(
    """
    syslog uselib ustat sysfs vhangup pivot_root _sysctl chroot acct settimeofday mount umount2 swapon swapoff reboot
    sethostname setdomainname iopl ioperm create_module init_module delete_module get_kernel_syms query_module quotactl
    nfsservctl getpmsg putpmsg afs_syscall tuxcall security lookup_dcookie clock_settime vserver mbind set_mempolicy
    get_mempolicy kexec_load add_key request_key keyctl migrate_pages unshare move_pages perf_event_open fanotify_init
    fanotify_mark open_by_handle_at name_to_handle_at setns kcmp finit_module kexec_file_load bpf userfaultfd
    io_uring_setup io_uring_enter io_uring_register open_tree move_mount fsopen fsconfig fsmount fspick pidfd_getfd
    process_madvise mount_setattr quotactl_fd set_mempolicy_home_node ptrace process_vm_readv process_vm_writev
    vmsplice memfd_secret lsm_get_self_attr lsm_set_self_attr lsm_list_modules open_tree_attr statmount listmount
    file_getattr file_setattr
    """.split()  # noqa: SIM905
)


class Filter:
    """The program for one architecture, asked by name."""

    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.numbers = syscall_numbers.BY_MACHINE[machine]
        self.program = seccomp.build(machine)

    def number(self, number: int, *arguments: int, architecture: int | None = None) -> str:
        chosen = bpf.ARCHITECTURES[self.machine] if architecture is None else architecture
        result = bpf.run(self.program, bpf.packet(number, chosen, *arguments))
        if result == bpf.ALLOW:
            return "allow"
        if result == bpf.KILL_PROCESS:
            return "kill"
        if result == bpf.ERRNO:
            return "done"
        return errno.errorcode[result & 0xFFFF]

    def __call__(self, name: str, *arguments: int) -> str:
        return self.number(self.numbers[name], *arguments)


@pytest.fixture(params=MACHINES)
def filtered(request: pytest.FixtureRequest) -> Filter:
    return Filter(request.param)


@pytest.fixture
def x86_64() -> Filter:
    return Filter("x86_64")


def test_the_program_is_one_that_the_kernel_takes(filtered: Filter) -> None:
    bpf.check(filtered.program)

    assert bpf.dead_instructions(filtered.program) == []
    assert len(seccomp.assemble(filtered.program)) == 8 * len(filtered.program)


@pytest.mark.attack(59)
def test_pages_that_no_cgroup_counts_cannot_be_had(filtered: Filter) -> None:
    for size in (0, 21 << 26, 30 << 26):
        assert filtered("mmap", 0, 2**21, 3, 0x40022 | size) == "ENOMEM"
        assert filtered("memfd_create", 0, 4 | size) == "ENOMEM"
        assert filtered("shmget", 0, 2**21, 0o5600 | size) == "ENOMEM"
    assert filtered("mmap", 0, 4096, 3, 0x22) == "allow"
    assert filtered("memfd_create", 0, 3) == "allow"
    assert filtered("shmget", 0, 4096, 0o1600) == "allow"


def test_every_number_is_treated_as_the_profile_says(filtered: Filter) -> None:
    names = {number: name for name, number in filtered.numbers.items()}
    newest = max(names)
    for number in range(601):
        name = names.get(number)
        if name in seccomp.ALLOWED:
            expected = {"allow"}
        elif name in seccomp.ABSENT:
            expected = {"ENOSYS"}
        elif name in ("sync", "syncfs"):
            expected = {"done"}
        elif name in seccomp._RULES:
            expected = {"allow", "EPERM", "ENOSYS", "EAFNOSUPPORT", "EINVAL", "ENOMEM"}
        else:
            expected = {"EPERM"} if number <= newest else {"ENOSYS"}
        assert filtered.number(number) in expected, (number, name)
        # What is allowed or refused by its name alone does not depend on arguments.
        if name not in seccomp._RULES:
            for argument in (1, 2**31, 2**32 - 1, 2**64 - 1):
                assert filtered.number(number, *[argument] * 6) in expected, (number, name)


@pytest.mark.attack(27, 28)
def test_no_call_that_must_be_blocked_is_allowed(filtered: Filter) -> None:
    assert not BLOCKED & seccomp.ALLOWED
    assert not BLOCKED & set(seccomp._RULES)
    for name in BLOCKED & set(filtered.numbers):
        assert filtered(name) == "EPERM", name


def test_every_name_in_the_profile_is_a_call_of_some_architecture() -> None:
    known = set(syscall_numbers.X86_64) | set(syscall_numbers.BY_MACHINE["aarch64"])

    assert set(seccomp.ALLOWED) | set(seccomp._RULES) <= known
    assert not set(seccomp.ALLOWED) & set(seccomp._RULES)
    assert known >= BLOCKED - {"_sysctl", "lookup_dcookie"} - {"tuxcall", "security", "vserver"}


def test_calls_newer_than_the_table_are_unknown_so_that_a_libc_falls_back(filtered: Filter) -> None:
    for number in (max(filtered.numbers.values()) + 1, 600, 10_000, 0x3FFFFFFF):
        assert filtered.number(number) == "ENOSYS"


@pytest.mark.attack(25, 27)
def test_x32_calls_and_number_minus_one_are_unknown(x86_64: Filter) -> None:
    for number in range(601):
        assert x86_64.number(0x40000000 | number) == "ENOSYS"
    for number in (-1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        assert x86_64.number(number) == "ENOSYS"


def test_number_minus_one_is_unknown_on_aarch64() -> None:
    assert Filter("aarch64").number(-1) == "ENOSYS"


@pytest.mark.attack(25, 26)
def test_a_call_by_another_architecture_kills(filtered: Filter) -> None:
    others = {**bpf.OTHER_ARCHITECTURES, **bpf.ARCHITECTURES}
    del others[filtered.machine]
    for architecture in others.values():
        for number in (0, 1, 59, 102, 400, 0x40000000, 0xFFFFFFFF):
            assert filtered.number(number, architecture=architecture) == "kill"


@pytest.mark.attack(25)
def test_clone_makes_processes_and_threads_but_no_namespace(filtered: Filter) -> None:
    """Each flag bit alone, and with what fork and pthread_create set."""
    new = {0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000}
    for bit in range(32):
        for common in (0, 17, 0x3D0F00, 0x01200011):
            flags = 1 << bit | common
            expected = "EPERM" if any(flags & one for one in new) else "allow"
            assert filtered("clone", flags) == expected, hex(flags)
            # The kernel looks at the lower half only: so does the filter.
            assert filtered("clone", flags | 0xFFFFFFFF << 32) == expected, hex(flags)


@pytest.mark.attack(25)
def test_clone3_is_unknown_so_that_a_libc_takes_clone(filtered: Filter) -> None:
    assert filtered("clone3", 2**40, 88) == "ENOSYS"


@pytest.mark.attack(24, 26)
def test_only_four_socket_families_exist_and_of_netlink_only_routes(filtered: Filter) -> None:
    for family, protocol, kind in itertools.product(range(47), range(33), (1, 2, 3, 5, 0x80801)):
        allowed = family in (1, 2, 10) or (family == 16 and protocol == 0)
        expected = "allow" if allowed else "EAFNOSUPPORT"
        assert filtered("socket", family, kind, protocol) == expected, (family, protocol)
    for family in (38, 40, 2**31, 2**32 - 1, 2**32 | 38):
        assert filtered("socket", family, 1, 0) == "EAFNOSUPPORT"
    # int is 32 bits: what is above does not make another family of it, nor of a protocol.
    assert filtered("socket", 2**32 | 2, 1, 0) == "allow"
    assert filtered("socket", 16, 3, 2**32 | 12) == "EAFNOSUPPORT"


def test_socket_pairs_are_of_the_unix_family_only(filtered: Filter) -> None:
    for family in range(47):
        assert filtered("socketpair", family, 1, 0) == ("allow" if family == 1 else "EAFNOSUPPORT")


@pytest.mark.attack(20)
def test_no_ioctl_types_into_a_terminal_whatever_is_above_its_32_bits(filtered: Filter) -> None:
    for high in (0, 1, 0xFFFFFFFF, 0x80000000):
        for request in (0x5412, 0x541C):
            assert filtered("ioctl", 0, high << 32 | request, 0) == "EPERM"
        for request in (0x5401, 0x5411, 0x5413, 0x541B, 0x541D, 0x8912):
            assert filtered("ioctl", 0, high << 32 | request, 0) == "allow"
    # The request is the second argument, not the first or the third.
    assert filtered("ioctl", 0x5412, 0x5401, 0x5412) == "allow"


def test_personality_is_linux_with_known_flags_or_a_question(filtered: Filter) -> None:
    for value in (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert filtered("personality", value) == "allow"
    for value in (0x1, 0x10, 0x0040000, 0x0100000, 0x0400000, 0x4000000, 0x20000 | 0x0400000):
        assert filtered("personality", value) == "EPERM"


@pytest.mark.attack(54)
def test_limits_of_other_processes_cannot_be_changed(filtered: Filter) -> None:
    assert filtered("prlimit64", 0, 7, 0, 0) == "allow"
    for pid in (1, 2, 4711, 2**32 - 1):
        assert filtered("prlimit64", pid, 7, 0, 0) == "EPERM"


@pytest.mark.attack(54)
def test_no_disk_priority_is_real_time_whatever_is_above_its_32_bits(filtered: Filter) -> None:
    for who, level, high in itertools.product((1, 2, 3), range(8), (0, 1, 2**32 - 1)):
        for kind, expected in ((0, "allow"), (1, "EPERM"), (2, "allow"), (3, "allow")):
            priority = high << 32 | kind << 13 | level
            assert filtered("ioprio_set", who, 0, priority) == expected, hex(priority)
    # The kernel looks at three bits of the class: what is above does not make another of it.
    assert filtered("ioprio_set", 1, 0, 1 << 16 | 1 << 13) == "EPERM"
    # It is the third argument, not the first or the second.
    assert filtered("ioprio_set", 1 << 13, 1 << 13, 2 << 13) == "allow"


def test_the_old_descriptor_tables_cannot_be_changed(x86_64: Filter) -> None:
    assert x86_64("modify_ldt", 1, 2**40, 16) == "EPERM"


@pytest.mark.parametrize("name", ["mknod", "mknodat"])
def test_every_kind_of_node_but_devices_can_be_made(name: str, x86_64: Filter) -> None:
    kinds = {0: "allow", 0o010: "allow", 0o014: "allow", 0o100: "allow", 0o020: "EPERM"}
    kinds |= {0o060: "EPERM"}
    place = [0, 0] if name == "mknod" else [0, 0, 0]
    for kind, expected in kinds.items():
        for mode in (0, 0o666, 0o7777):
            place[-1] = kind << 9 | mode
            assert x86_64(name, *place) == expected, oct(place[-1])
            place[-1] |= 2**32
            assert x86_64(name, *place) == expected, oct(place[-1])


@pytest.mark.attack(27)
def test_prctl_cannot_move_the_memory_map(filtered: Filter) -> None:
    assert filtered("prctl", 35, 1) == "EPERM"
    assert filtered("prctl", 2**32 | 35, 1) == "EPERM"
    for option in (1, 3, 4, 15, 22, 23, 24, 36, 38, 53, 0x53564D41):
        assert filtered("prctl", option) == "allow"


@pytest.mark.attack(26)
def test_no_lease_on_a_file_keeps_others_waiting(filtered: Filter) -> None:
    assert filtered("fcntl", 3, 1024, 1) == "EPERM"
    assert filtered("fcntl", 3, 2**32 | 1024, 0) == "EPERM"


@pytest.mark.attack(27)
def test_a_command_cannot_add_filters_but_may_ask_what_there_is(filtered: Filter) -> None:
    """Compiled ones share a space with those of every other sandbox: as on a kernel without them."""
    for high in (0, 2**32):
        assert filtered("seccomp", high | 1, 0, 2**40) == "EINVAL"
        assert filtered("seccomp", high | 1, 0b111_1111, 2**40) == "EINVAL"
        assert filtered("prctl", high | 22, high | 2, 2**40) == "EINVAL"
    for operation in (0, 2, 3):
        assert filtered("seccomp", operation, 0, 2**40) == "allow"
    for option, mode in ((22, 1), (22, 0), (21, 2), (2, 2)):
        assert filtered("prctl", option, mode) == "allow"


@pytest.mark.attack(43)
def test_pipes_cannot_be_made_larger(filtered: Filter) -> None:
    assert filtered("fcntl", 3, 1031, 2**20) == "EPERM"
    assert filtered("fcntl", 3, 2**32 | 1031, 2**20) == "EPERM"
    for command in (0, 1, 2, 3, 4, 5, 6, 7, 37, 38, 1025, 1030, 1032, 1033):
        assert filtered("fcntl", 3, command) == "allow"


def test_no_filter_program_is_attached_to_a_socket(filtered: Filter) -> None:
    """They would use up what the host has for compiled programs, of which every sandbox needs one."""
    for option in (26, 50, 51, 52):
        assert filtered("setsockopt", 3, 1, option) == "EPERM"
        assert filtered("setsockopt", 3, 2**32 | 1, 2**32 | option) == "EPERM"
        assert filtered("setsockopt", 3, 6, option) == "allow"
    for option in (2, 6, 7, 8, 9, 13, 15, 20, 21, 25, 27, 49, 53):
        assert filtered("setsockopt", 3, 1, option) == "allow"


@pytest.mark.parametrize(
    "name", ["sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"]
)
@pytest.mark.attack(23)
def test_init_cannot_be_put_to_sleep(name: str, filtered: Filter) -> None:
    assert filtered(name, 1) == "EPERM"
    assert filtered(name, 0) == "allow"
    assert filtered(name, 2) == "allow"
    assert filtered("setpriority", 0, 1, 19) == "EPERM"
    assert filtered("setpriority", 0, 0, 19) == "allow"
    for who in (0, 1, 1000):
        assert filtered("setpriority", 2, who, 19) == "EPERM"


def test_the_digest_is_that_of_the_program_and_differs_by_architecture() -> None:
    digests = {filter_digest(machine) for machine in MACHINES}

    assert len(digests) == 2
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in digests)
    assert filter_digest("x86_64") == filter_digest("x86_64")


def test_an_architecture_without_a_table_has_no_filter() -> None:
    with pytest.raises(KeyError):
        seccomp.build("riscv64")


def numbers_in(text: str) -> dict[str, int]:
    return {
        name: int(number)
        for name, number in re.findall(r"^#define __NR_(\w+)\s+(\d+)\s*$", text, re.MULTILINE)
    }


def test_the_x86_64_table_is_the_kernels() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        host_required("no kernel headers (linux-libc-dev)")

    kernel = numbers_in(header.read_text())
    assert len(kernel) > 350
    assert kernel.items() <= syscall_numbers.X86_64.items()


def test_the_aarch64_table_is_the_kernels() -> None:
    """asm-generic/unistd.h with what arch/arm64/include/uapi/asm/unistd.h defines."""
    header = Path("/usr/include/asm-generic/unistd.h")
    if not header.exists() or shutil.which("gcc") is None:
        host_required("no kernel headers or no gcc")
    wanted = ["RENAMEAT", "NEW_STAT", "SET_GET_RLIMIT", "SYS_CLONE3", "MEMFD_SECRET"]
    defined = [f"-D__ARCH_WANT_{name}" for name in wanted]
    source = "#undef __BITS_PER_LONG\n#define __BITS_PER_LONG 64\n#include <asm-generic/unistd.h>\n"
    macros = subprocess.run(
        ["gcc", "-E", "-dM", "-D__ASM_GENERIC_BITS_PER_LONG", *defined, "-"],
        input=source,
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    defined_as = dict(re.findall(r"^#define (__NR(?:3264)?_\w+) +(\w+)$", macros, re.MULTILINE))
    # `__NR_fcntl` is `__NR3264_fcntl`, which is 25.
    kernel = {
        name.removeprefix("__NR_"): int(defined_as.get(value, value))
        for name, value in defined_as.items()
        if name.startswith("__NR_")
    }
    del kernel["syscalls"], kernel["arch_specific_syscall"]
    assert len(kernel) > 290
    assert kernel.items() <= syscall_numbers.BY_MACHINE["aarch64"].items()


def test_no_number_stands_twice(filtered: Filter) -> None:
    assert len(set(filtered.numbers.values())) == len(filtered.numbers)
