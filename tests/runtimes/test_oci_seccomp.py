"""The seccomp section as a runtime and the kernel carry it out: every call is really made."""

import errno
import signal

from compiled_probe import CHANGING
from sandbox_bench import Bench

from sandboxd.isolation import syscall_numbers
from sandboxd.isolation.spec import OciRuntime

LAST_OF_LIBSECCOMP = 450
"""set_mempolicy_home_node: every libseccomp in use knows the calls as far as this."""
REFUSED = {f"errno {errno.EPERM}", f"errno {errno.ENOSYS}", f"signal {signal.SIGSYS:d}"}


def outcomes(bench: Bench, probe: bytes, runtime: OciRuntime | None) -> dict[int, str]:
    words = "cat > /work/probe && chmod +x /work/probe && exec /work/probe"
    ran = bench.run("sh", "-c", words, stdin=probe, runtime=runtime)
    assert ran.exit is not None
    assert ran.exit.code == 0, ran
    lines = (line.split(" ", 1) for line in ran.out.decode().splitlines())
    return {int(number): outcome for number, outcome in lines if number.isdigit()}


def test_the_kernel_answers_every_call_as_in_a_native_sandbox(
    bench: Bench, probe: bytes, oci: OciRuntime
) -> None:
    """But for calls that the runtime's libseccomp does not know: those are refused, also where we would allow them."""
    native, found = outcomes(bench, probe, None), outcomes(bench, probe, oci)
    names = {number: name for name, number in syscall_numbers.X86_64.items()}
    differing = {
        names.get(number, str(number)): (native[number], found[number])
        for number in native
        if found[number] != native[number]
        and names.get(number) not in CHANGING
        and not (number > LAST_OF_LIBSECCOMP and found[number] in REFUSED)
    }

    assert differing == {}
    assert native.keys() == found.keys()
    assert len(native) > 600
