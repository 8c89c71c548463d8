"""Limits of a job: what they are, and what happens when a job asks for more than the operator allows."""

import functools
import math

import msgspec

from sandboxd.errors import Fault
from sandboxd.quantities import format_quantity, parse_bytes

LONGEST_SECONDS = 86_400.0
"""A day: the highest ceiling that comes with the program."""

MOST_NETWORK_BYTES = 2**40
"""The highest ceiling that comes with the program."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one job may use. Every job has a value for each: a default where it asked for nothing."""

    cpus: float
    """CPU rate, in CPUs (0.5 is half of one)."""
    memory_bytes: int
    """Resident memory, page cache and tmpfs files together."""
    pids: int
    """Processes and threads at once."""
    disk_bytes: int
    """Scratch space: everything that the job writes outside read-only paths."""
    wall_seconds: float
    """How long the command may run."""
    cpu_seconds: float
    """CPU time of all processes of the job, summed."""
    output_bytes: int
    """Standard output and standard error together."""
    open_files: int
    """Descriptors per process (RLIMIT_NOFILE)."""
    idle_seconds: float = LONGEST_SECONDS
    """How long the command may write nothing."""
    network_bytes: int = MOST_NETWORK_BYTES
    """Received and sent together, of a job with egress."""
    swap_bytes: int = 0
    """What may be swapped out, beside the memory."""
    io_bytes_per_second: int = 0
    """Read from disks, and as many written to them; 0: no limit."""


LEAST = Limits(
    cpus=0.01,
    memory_bytes=4 * 2**20,
    pids=1,
    disk_bytes=64 * 2**10,
    wall_seconds=0.001,
    cpu_seconds=0.001,
    output_bytes=0,
    open_files=16,
    idle_seconds=0.001,
    network_bytes=0,
    swap_bytes=0,
    io_bytes_per_second=2**20,
)
"""Below these no command can start."""


WIRE_NAMES = {"memory_bytes": "memory", "disk_bytes": "disk", "swap_bytes": "swap"}
"""Where the API's word for a limit is not the field's name."""


class LimitsAsked(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename=WIRE_NAMES,
):
    """What somebody said about limits, already in our units; None where they said nothing."""

    cpus: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    output_bytes: int | None = None
    open_files: int | None = None
    idle_seconds: float | None = None
    network_bytes: int | None = None
    swap_bytes: int | None = None
    io_bytes_per_second: int | None = None


NOTHING_ASKED = LimitsAsked()
_MAY_BE_ABSENT = frozenset({"io_bytes_per_second"})
"""Of these, 0 stands for no limit at all: it is more than any."""


def is_too_little(name: str, value: float) -> bool:
    """Whether with such a limit no command can start or come to an end."""
    least: float = getattr(LEAST, name)
    return _amount(name, value) < least


def is_more(name: str, value: float, than: float) -> bool:
    """Whether one limit allows more than another."""
    return _amount(name, value) > _amount(name, than)


def _amount(name: str, value: float) -> float:
    return math.inf if value == 0 and name in _MAY_BE_ABSENT else value


def settle(
    asked: LimitsAsked, defaults: Limits, ceilings: Limits, own: LimitsAsked = NOTHING_ASKED
) -> tuple[Limits, list[Fault]]:
    """The limits a job gets, and a fault (pointer below `/limits`) for each that is out of bounds.

    A default above its ceiling is lowered without a word; an explicit wish above it is refused. `own`: ceilings of the
    tenant, which hold where they are lower.
    """
    limits, faults = _settled(asked, defaults, ceilings, own)
    return limits, list(faults)


@functools.lru_cache(maxsize=256)
def _settled(
    asked: LimitsAsked, defaults: Limits, ceilings: Limits, own: LimitsAsked
) -> tuple[Limits, tuple[Fault, ...]]:
    """Most jobs ask for what others asked for before."""
    faults: list[Fault] = []
    values: dict[str, float | int] = {}
    for name in Limits.__struct_fields__:
        wish = getattr(asked, name)
        least, most = getattr(LEAST, name), getattr(ceilings, name)
        of_tenant = getattr(own, name)
        note = ""
        if of_tenant is not None and is_more(name, most, of_tenant):
            most, note = of_tenant, ", the most that your tenant may have"
        if wish is None:
            wish = min(getattr(defaults, name), most, key=lambda value: _amount(name, value))
        elif is_too_little(name, wish) or is_more(name, wish, most):
            word = WIRE_NAMES.get(name, name)
            faults.append(Fault(f"/limits/{word}", _out_of_bounds(name, wish, least, most) + note))
            wish = most
        values[name] = wish
    return Limits(**values), tuple(faults)  # type: ignore[arg-type]


def _out_of_bounds(name: str, wish: float, least: float, most: float) -> str:
    """Sizes as quantities, which is how people ask; a size that is none stays a number of bytes."""
    if "_bytes" not in name:
        return f"{wish} is not from {least} to {most}"
    quantity = format_quantity(int(wish))
    if parse_bytes(quantity) != wish:
        quantity = str(wish)
    if most == 0 and name in _MAY_BE_ABSENT:
        return f"{quantity} is neither 0, which is no limit, nor at least {format_quantity(int(least))}"
    if least == most:
        return f"{quantity} is not to be had here: it has to be {format_quantity(int(most))}"
    return f"{quantity} is not from {format_quantity(int(least))} to {format_quantity(int(most))}"
