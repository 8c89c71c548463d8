"""How a job's priority becomes its share of the CPUs, where more is wanted than there is.

A geometric scale: 50 more is ten times as much, whatever the two priorities are. The kernel's default is the share of priority 0, so that
nothing has to be written for a job that says nothing. Sources: cgroup-v2.rst (`cpu.weight`, 1 to 10000), sched-design-CFS.rst (`cpu.shares`, from 2 on).
"""

DEFAULT_PRIORITY = 0
_DEFAULT_WEIGHT = 100
_DEFAULT_SHARES = 1024
_TENFOLD = 50


def cpu_weight(priority: int) -> int:
    """`cpu.weight` of cgroup v2."""
    return min(max(round(_DEFAULT_WEIGHT * _ratio(priority)), 1), 10_000)


def cpu_shares(priority: int) -> int:
    """`cpu.shares` of cgroup v1."""
    return max(round(_DEFAULT_SHARES * _ratio(priority)), 2)


def _ratio(priority: int) -> float:
    return float(10 ** ((priority - DEFAULT_PRIORITY) / _TENFOLD))
