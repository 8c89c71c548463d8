"""The seccomp section for OCI runtimes says what the native filter says (ATTACKS 24-28)."""

import errno
from typing import Any

import bpf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxd.isolation import seccomp, syscall_numbers
from sandboxd.isolation.oci import seccomp_profile

ALLOW, EPERM = 0x7FFF0000, 0x00050000 | errno.EPERM


def decide(profile: dict[str, Any], name: str, arguments: list[int]) -> int:
    """What a runtime does with a call: the rule that fits, else the default."""
    fitting = set()
    for rule in profile["syscalls"]:
        if name in rule["names"] and all(
            arguments[a["index"]] & a["value"] == a["valueTwo"] for a in rule.get("args", [])
        ):
            allow = rule["action"] == "SCMP_ACT_ALLOW"
            fitting.add(ALLOW if allow else 0x00050000 | rule["errnoRet"])
    assert len(fitting) <= 1, (name, arguments, fitting)
    return fitting.pop() if fitting else EPERM


PROFILES = {machine: seccomp_profile.profile(machine) for machine in seccomp_profile.ARCHITECTURES}
NEAR = sorted(
    {v + d for v in (0, 1, 2, 8, 16, 22, 26, 35, 50, 1031, 0x5412, 0x541C) for d in (-1, 0, 1)}
)
VALUES = st.one_of(
    st.sampled_from(NEAR).map(lambda value: value % 2**64),
    st.sampled_from(NEAR).map(lambda value: (value % 2**32) | 1 << 32),
    st.sampled_from([0o020644, 0o060644, 0o100644, 0o010644, 0o140644, 0x7E020000, 1 << 13]),
    st.integers(0, 2**64 - 1),
)


@pytest.mark.parametrize("machine", PROFILES)
@settings(max_examples=60, deadline=None, database=None)
@given(arguments=st.lists(VALUES, min_size=6, max_size=6))
def test_every_call_is_decided_as_the_native_filter_decides(
    machine: str, arguments: list[int]
) -> None:
    program = seccomp.build(machine)
    wrong = {}
    for name, number in syscall_numbers.BY_MACHINE[machine].items():
        data = bpf.packet(number, bpf.ARCHITECTURES[machine], *arguments)
        native, ours = bpf.run(program, data), decide(PROFILES[machine], name, arguments)
        if native != ours and name not in seccomp_profile.LEFT_TO_THE_KERNEL:
            wrong[name] = (native, ours)

    assert wrong == {}


@pytest.mark.parametrize("machine", PROFILES)
def test_what_is_not_named_is_refused(machine: str) -> None:
    profile = PROFILES[machine]

    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["defaultErrnoRet"] == errno.EPERM
    assert profile["architectures"] == [seccomp_profile.ARCHITECTURES[machine]]


def test_a_program_that_no_rule_can_express_is_an_error() -> None:
    at_least = [seccomp.Instruction(0x20, 0, 0, 16), seccomp.Instruction(0x35, 0, 0, 7)]

    with pytest.raises(ValueError, match="0x35"):
        list(seccomp_profile.rules_of([*at_least, seccomp.Instruction(0x06, 0, 0, ALLOW)]))
