"""The filter as the kernel carries it out: every call is really made, from inside a sandbox (ATTACKS 27)."""

import errno
import signal

import bpf
import pytest
from compiled_probe import CHANGING, WRITE_AND_RUN
from sandbox_bench import Bench

from sandboxd.isolation import seccomp, syscall_numbers

# uretprobe and uprobe: since 6.14 the kernel shows them to no filter. Only a probe's own trampoline may make them; anybody
# else is answered ENXIO or ended by SIGILL.
NEVER_FILTERED = {335: {"errno 1", "signal 4"}, 336: {"errno 1", "errno 6"}}


def outcomes(bench: Bench, probe: bytes, argument: int, uid: int) -> dict[str, str]:
    words = ["sh", "-c", WRITE_AND_RUN, str(argument)]
    ran = bench.run(*words, stdin=probe, uid=uid, gid=uid)
    assert ran.exit is not None
    assert ran.exit.code == 0, ran
    return dict(line.split(" ", 1) for line in ran.out.decode().splitlines())


@pytest.mark.thorough
@pytest.mark.attack(27)
@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("argument", [-1, 0])
def test_every_call_ends_as_the_profile_says(
    probe: bytes, bench: Bench, unfiltered: Bench, argument: int, uid: int
) -> None:
    """Refused ones with the profile's errno; allowed ones exactly as in a sandbox without the filter."""
    with_filter = outcomes(bench, probe, argument, uid)
    without_filter = outcomes(unfiltered, probe, argument, uid)
    names = {number: name for name, number in syscall_numbers.X86_64.items()}
    program = seccomp.build("x86_64")
    wrong = {}
    for number in range(601):
        data = bpf.packet(number, bpf.ARCHITECTURES["x86_64"], *[argument] * 6)
        verdict = bpf.run(program, data)
        if verdict != bpf.ALLOW:
            expected = f"errno {verdict & 0xFFFF}"
        elif names[number] in CHANGING:
            continue
        else:
            expected = without_filter[str(number)]
        if with_filter[str(number)] not in NEVER_FILTERED.get(number, {expected}):
            wrong[names.get(number, str(number))] = (with_filter[str(number)], expected)

    assert wrong == {}
    refused = [one for one in with_filter.values() if one == f"errno {errno.EPERM}"]
    assert len(refused) > 60


@pytest.mark.attack(25, 26, 27)
def test_x32_calls_are_unknown_and_a_32_bit_call_kills(probe: bytes, bench: Bench) -> None:
    found = outcomes(bench, probe, -1, 1000)

    x32 = {n: of for n, of in found.items() if n.isdigit() and int(n) >= 0x40000000}
    assert len(x32) == 601
    assert set(x32.values()) == {f"errno {errno.ENOSYS}"}
    assert found["i386"] == f"signal {signal.SIGSYS:d}"
