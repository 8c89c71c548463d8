"""Signals as people write them for containers: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` (signal(7))."""

import re
import signal

_REAL_TIME = re.compile(r"SIGRT(MIN\+|MAX-)([0-9]{1,2})", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,2}", re.ASCII)
_SIGNALS = range(1, signal.SIGRTMAX + 1)


def parse_signal(text: str) -> int:
    """Its number. Raises ValueError."""
    if _NUMBER.fullmatch(text):
        number = int(text)
    else:
        name = text.upper()
        number = _named(name if name.startswith("SIG") else f"SIG{name}")
    if number not in _SIGNALS:
        raise ValueError(f"{text[:40]!r} is no signal")
    return number


def signal_name(number: int) -> str:
    """Its name, as `parse_signal` takes it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def _named(name: str) -> int:
    """0: there is none of that name."""
    real_time = _REAL_TIME.fullmatch(name)
    if real_time is None:
        return signal.Signals.__members__.get(name, 0)
    distance = int(real_time[2])
    if real_time[1] == "MIN+":
        number = signal.SIGRTMIN + distance
    else:
        number = signal.SIGRTMAX - distance
    return number if signal.SIGRTMIN <= number <= signal.SIGRTMAX else 0
