"""How a job's priority becomes its share of the CPUs, where more is wanted than there is.

A geometric scale: 50 less is a tenth. A job can only give way: shares are compared across tenants, so that priority 0, which is
the kernel's default, is the most that anybody gets; and nothing has to be written for a job that says nothing.
Sources: cgroup-v2.rst (`cpu.weight`, 1 to 10000), sched-design-CFS.rst (`cpu.shares`, from 2 on).
"""

_DEFAULT_WEIGHT = 100
_DEFAULT_SHARES = 1024
_TENFOLD = 50


def gives_way(priority: int) -> bool:
    """Whether a job with this priority gets less than others."""
    return priority < 0


def cpu_weight(priority: int) -> int:
    """`cpu.weight` of cgroup v2."""
    return max(round(_DEFAULT_WEIGHT * _ratio(priority)), 1)


def cpu_shares(priority: int) -> int:
    """`cpu.shares` of cgroup v1."""
    return max(round(_DEFAULT_SHARES * _ratio(priority)), 2)


def _ratio(priority: int) -> float:
    return float(10 ** (min(priority, 0) / _TENFOLD))
