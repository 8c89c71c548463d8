"""The seccomp section of an OCI configuration, made from the filter that native sandboxes have.

What `seccomp` does with each call is a small program without loops: it loads arguments, masks and compares them, and returns.
Each way through it is a list of comparisons and an action, which is what an OCI rule is. OCI rules compare for equality under a
mask only, so "none of these values" becomes a few rules, one for each group of values that differ from them in a leading bit.

Source: the runtime specification, config-linux.md, "Seccomp"; seccomp_rule_add(3).
"""

import errno
import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from sandboxd.isolation import seccomp, syscall_numbers

ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}

LEFT_TO_THE_KERNEL = frozenset(
    {
        "sched_setaffinity",
        "sched_setattr",
        "sched_setparam",
        "sched_setscheduler",
        "setpriority",
    }
)
"""Native sandboxes have rules for them because init has the command's uid. PID 1 of an OCI sandbox has not: the kernel refuses by
itself. Without them a runtime's libseccomp has a third less to do, which is some milliseconds."""

_ALL_BITS = 0xFFFFFFFF
_ARGUMENTS, _ARGUMENT_BYTES = 16, 8
"""Where the arguments are in struct seccomp_data, and the size of one."""
_ALLOW = 0x7FFF0000
_ERRNO, _ACTION = 0x00050000, 0xFFFF0000
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06


class Masked(NamedTuple):
    """Some bits of an argument."""

    argument: int
    mask: int


class Comparison(NamedTuple):
    """Whether those bits are this value."""

    bits: Masked
    value: int


class Way(NamedTuple):
    """One way through the program of a call: what must hold for it to be taken, and where it ends."""

    equal: dict[Masked, int]
    unequal: dict[Masked, frozenset[int]]
    action: int


@functools.cache
def profile_text(machine: str) -> str:
    """The section as JSON text. Raises KeyError for an architecture without a table."""
    return json.dumps(profile(machine), separators=(",", ":"))


def digest(machine: str) -> str:
    """`sha256:…` of the section, for the record of each job."""
    return f"sha256:{hashlib.sha256(profile_text(machine).encode()).hexdigest()}"


def profile(machine: str) -> dict[str, Any]:
    """The section. Calls of one action without comparisons share a rule."""
    plain: dict[int, list[str]] = defaultdict(list)
    compared = []
    for name in syscall_numbers.BY_MACHINE[machine]:
        if name in LEFT_TO_THE_KERNEL:
            plain[_ALLOW].append(name)
            continue
        for action, comparisons in rules_of(seccomp.code_for(name)):
            if comparisons:
                arguments = [_argument(comparison) for comparison in comparisons]
                compared.append({"names": [name], **_action(action), "args": arguments})
            else:
                plain[action].append(name)
    refused = plain.pop(_ERRNO | errno.EPERM, [])
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": [ARCHITECTURES[machine]],
        "syscalls": [
            *({"names": names, **_action(action)} for action, names in plain.items()),
            *compared,
            # Last, and though it is the default: what a runtime finds no rule for may be unknown to it altogether.
            *([{"names": refused, **_action(_ERRNO | errno.EPERM)}] if refused else []),
        ],
    }


def rules_of(program: seccomp.Program) -> Iterator[tuple[int, list[Comparison]]]:
    """Action and comparisons (all of which must hold) of each rule. What is refused with EPERM needs none: it is the default."""
    ways = list(_ways(program))
    for way in ways:
        if way.action != _ERRNO | errno.EPERM or len(ways) == 1:
            for comparisons in _comparisons(way):
                yield way.action, comparisons


def _ways(
    program: seccomp.Program, position: int = 0, loaded: Masked | None = None
) -> Iterator[Way]:
    code, if_true, if_false, value = program[position]
    following = position + 1
    match code:
        case 0x06:  # _RETURN
            yield Way({}, {}, value)
        case 0x20:  # _LOAD
            argument = (value - _ARGUMENTS) // _ARGUMENT_BYTES
            yield from _ways(program, following, Masked(argument, _ALL_BITS))
        case 0x54 if loaded is not None:  # _AND
            yield from _ways(program, following, Masked(loaded.argument, loaded.mask & value))
        case 0x15 if loaded is not None:  # _EQUAL
            for way in _ways(program, following + if_true, loaded):
                if (
                    value not in way.unequal.get(loaded, ())
                    and way.equal.get(loaded, value) == value
                ):
                    yield way._replace(equal={**way.equal, loaded: value})
            for way in _ways(program, following + if_false, loaded):
                if way.equal.get(loaded) == value:
                    continue
                if loaded not in way.equal:
                    others = way.unequal.get(loaded, frozenset()) | {value}
                    way = way._replace(unequal={**way.unequal, loaded: others})
                yield way
        case _:
            raise ValueError(f"instruction {code:#x} has no counterpart in an OCI profile")


def _comparisons(way: Way) -> Iterator[list[Comparison]]:
    equal = [Comparison(bits, value) for bits, value in way.equal.items()]
    groups = [
        list(_none_of(bits, values))
        for bits, values in way.unequal.items()
        if bits not in way.equal
    ]
    for chosen in product(*groups):
        yield sorted([*equal, *chosen])


def _none_of(bits: Masked, values: frozenset[int]) -> Iterator[Comparison]:
    """Comparisons of which exactly one holds if the bits are none of the values."""
    positions = [1 << n for n in reversed(range(32)) if bits.mask >> n & 1]
    prefixes = {(0, 0)}
    for bit in positions:
        longer = {(mask | bit, prefix | chosen) for mask, prefix in prefixes for chosen in (0, bit)}
        prefixes = set()
        for mask, prefix in sorted(longer):
            if any(value & mask == prefix for value in values):
                prefixes.add((mask, prefix))
            else:
                yield Comparison(Masked(bits.argument, mask), prefix)


def _action(action: int) -> dict[str, Any]:
    if action == _ALLOW:
        return {"action": "SCMP_ACT_ALLOW"}
    if action & _ACTION == _ERRNO:
        return {"action": "SCMP_ACT_ERRNO", "errnoRet": action & ~_ACTION}
    raise ValueError(f"action {action:#x} has no counterpart in an OCI profile")


def _argument(comparison: Comparison) -> dict[str, Any]:
    """`value` is the mask, `valueTwo` what the masked argument must be."""
    bits, value = comparison
    operator = {"op": "SCMP_CMP_MASKED_EQ"}
    return {"index": bits.argument, "value": bits.mask, "valueTwo": value, **operator}
