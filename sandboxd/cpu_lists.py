"""Lists of CPUs as Linux writes them, `0-2,5` (cpuset(7), "List format")."""

import re
from collections.abc import Iterable

_MOST_CPUS = 8192
"""As many as a kernel can be built for (NR_CPUS)."""
_PART = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", re.ASCII)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The numbers, each once, in order. Raises ValueError."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:40]!r} is neither a CPU nor a range of them")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < _MOST_CPUS:
            raise ValueError(f"{part!r} is no range of CPUs")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The shortest text that means these."""
    parts: list[tuple[int, int]] = []
    for cpu in sorted(set(cpus)):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1] = (parts[-1][0], cpu)
        else:
            parts.append((cpu, cpu))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
