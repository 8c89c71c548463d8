"""Limits of a job: what they are, and what happens when a job asks for more than the operator allows."""

import msgspec

from sandboxd.errors import Fault
from sandboxd.quantities import format_quantity, parse_bytes

LONGEST_SECONDS = 86_400.0
"""A day: the highest ceiling that comes with the program."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one job may use. Every job has a value for each: a default where it asked for nothing."""

    cpus: float
    """CPU rate, in CPUs (0.5 is half of one)."""
    memory_bytes: int
    """Resident memory, page cache and tmpfs files together; swap is off."""
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


LEAST = Limits(
    cpus=0.01,
    memory_bytes=4 * 2**20,
    pids=1,
    disk_bytes=64 * 2**10,
    wall_seconds=0.001,
    cpu_seconds=0.001,
    output_bytes=0,
    open_files=8,
    idle_seconds=0.001,
)
"""Below these no command can start."""


WIRE_NAMES = {"memory_bytes": "memory", "disk_bytes": "disk"}
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


NOTHING_ASKED = LimitsAsked()


def settle(
    asked: LimitsAsked, defaults: Limits, ceilings: Limits, own: LimitsAsked = NOTHING_ASKED
) -> tuple[Limits, list[Fault]]:
    """The limits a job gets, and a fault (pointer below `/limits`) for each that is out of bounds.

    A default above its ceiling is lowered without a word; an explicit wish above it is refused. `own`: ceilings of the
    tenant, which hold where they are lower.
    """
    faults: list[Fault] = []
    values: dict[str, float | int] = {}
    for name in Limits.__struct_fields__:
        wish = getattr(asked, name)
        least, most = getattr(LEAST, name), getattr(ceilings, name)
        of_tenant = getattr(own, name)
        note = ""
        if of_tenant is not None and of_tenant < most:
            most, note = of_tenant, ", the most that your tenant may have"
        if wish is None:
            wish = min(getattr(defaults, name), most)
        elif not least <= wish <= most:
            word = WIRE_NAMES.get(name, name)
            faults.append(Fault(f"/limits/{word}", _out_of_bounds(name, wish, least, most) + note))
            wish = most
        values[name] = wish
    return Limits(**values), faults  # type: ignore[arg-type]


def _out_of_bounds(name: str, wish: float, least: float, most: float) -> str:
    """Sizes as quantities, which is how people ask; a size that is none stays a number of bytes."""
    if not name.endswith("_bytes"):
        return f"{wish} is not from {least} to {most}"
    quantity = format_quantity(int(wish))
    if parse_bytes(quantity) != wish:
        quantity = str(wish)
    return f"{quantity} is not from {format_quantity(int(least))} to {format_quantity(int(most))}"
