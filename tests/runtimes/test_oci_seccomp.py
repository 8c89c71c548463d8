"""The seccomp section as a runtime and the kernel carry it out: every call is really made."""

import errno
import platform
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_tests import host_required
from sandbox_bench import Bench, a_bench

from sandboxd.isolation import syscall_numbers
from sandboxd.isolation.spec import OciRuntime

PROBE = Path(__file__).parent.parent / "isolation" / "probe.c"

# Their outcome depends on the moment, or is lost with the process that would tell it.
CHANGING = {"fork", "vfork", "rt_sigreturn", "getrandom", "alarm", "sync", "times", "time"}

LAST_OF_LIBSECCOMP = 450
"""set_mempolicy_home_node: every libseccomp in use knows the calls as far as this."""
REFUSED = {f"errno {errno.EPERM}", f"errno {errno.ENOSYS}", f"signal {signal.SIGSYS:d}"}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with a_bench() as made:
        yield made


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    if platform.machine() != "x86_64" or shutil.which("gcc") is None:
        host_required("the probe is for x86_64 and is compiled by gcc")
    program = tmp_path_factory.mktemp("probe") / "probe"
    words = ["gcc", "-O1", "-static", "-Wall", "-Werror", "-o", str(program), str(PROBE)]
    compiled = subprocess.run(words, capture_output=True, text=True, check=False)
    assert compiled.returncode == 0, compiled.stderr
    return program.read_bytes()


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
