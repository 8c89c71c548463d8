"""Sizes and CPU counts as people write them: Kubernetes quantities (`128Mi`, `1.5G`, `500m`)."""

import re
from decimal import Decimal

_FACTORS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)(k|M|G|T|Ki|Mi|Gi|Ti)?", re.ASCII)
_CPUS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(m)?", re.ASCII)


def parse_bytes(value: int | str) -> int:
    """Bytes from a number or a quantity.

    Raises ValueError with a sentence for the user.
    """
    if isinstance(value, int):
        size = value
    else:
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(
                f'"{value[:40]}" is not a size: write bytes or a quantity like "128Mi"'
            )
        size = int(Decimal(match[1]) * _FACTORS[match[2] or ""])
    if not 0 <= size < 2**63:
        raise ValueError("a size must be from 0 to 2^63 - 1 bytes")
    return size


def parse_cpus(value: float | str) -> float:
    """CPUs from a number or a quantity (`500m` is half a CPU).

    Raises ValueError with a sentence for the user.
    """
    if not isinstance(value, str):
        return float(value)
    match = _CPUS.fullmatch(value)
    if match is None:
        raise ValueError(f'"{value[:40]}" is not a CPU count: write a number or "500m"')
    return float(Decimal(match[1]) / (1000 if match[2] else 1))


def format_bytes(size: int) -> str:
    """A size for people: `268.4 MB`. Decimal units, as in the sentences that explain how a job ended."""
    if size < 1000:
        return f"{size} B"
    amount = float(size)
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 999.95 or unit == "TB":
            break
    return f"{amount:.1f}".removesuffix(".0") + f" {unit}"


def format_quantity(size: int) -> str:
    """A size as `parse_bytes` reads it, rounded down to a tenth of its unit: `23.5Gi`."""
    unit = next((unit for unit in ("Ti", "Gi", "Mi", "Ki") if size >= _FACTORS[unit]), "")
    whole, tenth = divmod(size * 10 // _FACTORS[unit], 10)
    return f"{whole}.{tenth}{unit}" if tenth else f"{whole}{unit}"
