"""Which of the waiting jobs may start: what they need is free, every tenant gets its turn, and nobody waits for ever.

Theory of operation. A job needs its limits on memory and CPU rate and one slot, from its start to its end; nothing starts that
does not fit into what is free. The turn goes to the tenant that has the smallest share of the host (dominant resource
fairness: Ghodsi and others, NSDI 2011), of several to the one whose last turn is longest ago, and within it to the highest
priority, then to the oldest. The first job that does not fit holds a reservation: at the latest when those that run have used
up their wall time it fits. Others overtake it only where they cannot move that time: they end before it, or there is room
beside it (EASY backfilling: Lifka, 1995).

Everything here is a pure function of what is known at one moment.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from sandboxd.jobs import Candidate, JobSpec
from sandboxd.quotas.limits import Limits
from sandboxd.steps import Comparison

Choose = Callable[[Sequence[Candidate]], Sequence[str]]
"""Says which of some jobs that may run are to run now, in this order."""


class Room(NamedTuple):
    """An amount of what jobs need."""

    slots: int
    memory_bytes: int
    millicpus: int
    """Thousandths of a CPU's time: whole numbers add up exactly."""

    # Field by field, without loops: each job comes by here a dozen times.

    def plus(self, other: "Room") -> "Room":
        slots, memory_bytes, millicpus = other
        return Room(
            self.slots + slots, self.memory_bytes + memory_bytes, self.millicpus + millicpus
        )

    def minus(self, other: "Room") -> "Room":
        slots, memory_bytes, millicpus = other
        return Room(
            self.slots - slots, self.memory_bytes - memory_bytes, self.millicpus - millicpus
        )

    def positive(self) -> "Room":
        """Without what is less than nothing."""
        return Room(max(0, self.slots), max(0, self.memory_bytes), max(0, self.millicpus))

    def lacks(self, need: "Room") -> str | None:
        """The first of its fields that is not enough for `need`; None: it fits."""
        if need.slots > self.slots:
            return "slots"
        if need.memory_bytes > self.memory_bytes:
            return "memory_bytes"
        return "millicpus" if need.millicpus > self.millicpus else None

    def within(self, most: "Room") -> "Room":
        """No more than `most` of anything: what needs more than there is runs alone."""
        return Room(
            min(self.slots, most.slots),
            min(self.memory_bytes, most.memory_bytes),
            min(self.millicpus, most.millicpus),
        )

    def share_of(self, whole: "Room") -> float:
        """The largest of its parts of the whole."""
        parts = (mine / all_of_it for mine, all_of_it in zip(self, whole, strict=True) if all_of_it)
        return max(parts, default=0.0)


NOTHING = Room(0, 0, 0)


@dataclass(frozen=True, eq=False, slots=True)
class Occupant:
    """Somebody who has room: a job, or a sandbox that lives. Each is another, whatever it has."""

    tenant: str
    need: Room
    until: float
    """The Unix time at which it gives it back at the latest."""
    key_id: str | None = None


class Blocked(NamedTuple):
    """The job whose turn it is, and which does not fit."""

    job_id: str
    lacks: str
    """The field of `Room` of which there is not enough."""
    starts_by: float
    """When it fits at the latest (Unix time); infinite where that cannot be known."""


class Choice(NamedTuple):
    """Who starts now, in this order, and who is first among those that do not."""

    job_ids: tuple[str, ...] = ()
    blocked: Blocked | None = None
    held_back: bool = False
    """Whether jobs wait only because as many of their tenant or of their key run as may."""


def need_of(spec: JobSpec) -> Room:
    """What a job needs. A checker of its own is a second sandbox beside the first, with the same limits on memory."""
    checked = any(
        case.checker.comparison is Comparison.PROGRAM for step in spec.steps for case in step.cases
    )
    return room_for(spec.limits, sandboxes=2 if checked else 1)


def room_for(limits: Limits, *, sandboxes: int = 1) -> Room:
    """What sandboxes with these limits need, of which one at a time has a command that runs."""
    return Room(1, sandboxes * limits.memory_bytes, math.ceil(1000 * limits.cpus))


def in_turn(most: int) -> "Choose":
    """As many as that, whatever they need: the highest priority first, then the oldest."""
    return lambda waiting: [job.id for job in sorted(waiting, key=_turn)[:most]]


class _Lines:
    """Who waits, one line for each tenant, and whose turn it is."""

    def __init__(
        self,
        waiting: Iterable[Candidate],
        occupants: Sequence[Occupant],
        whole: Room,
        turns: Mapping[str, int],
        most_at_once: Callable[[str], int],
        most_of_key: Callable[[str | None], int],
    ) -> None:
        self._whole = whole
        self._most_at_once = most_at_once
        self._most_of_key = most_of_key
        self._lines: dict[str, deque[Candidate]] = {}
        for job in sorted(waiting, key=_turn):
            self._lines.setdefault(job.tenant, deque()).append(job)
        self._shares: defaultdict[str, Room] = defaultdict(lambda: NOTHING)
        for occupant in occupants:
            self._shares[occupant.tenant] = self._shares[occupant.tenant].plus(occupant.need)
        # Those that wait for their images count, though they have no slot.
        self._of_tenants = Counter(occupant.tenant for occupant in occupants)
        self._of_keys = Counter(occupant.key_id for occupant in occupants)
        self._last_turns = Counter(turns)
        self._turn = max(turns.values(), default=0)
        self.held_back = False

    def next(self) -> Candidate | None:
        """The job whose turn it is, which leaves its line; None: there is none."""
        for name, line in list(self._lines.items()):
            while line and 0 < self._most_of_key(line[0].key_id) <= self._of_keys[line[0].key_id]:
                # It waits for one of its key, and holds nobody up.
                line.popleft()
                self.held_back = True
            if not line:
                del self._lines[name]
            elif 0 < self._most_at_once(name) <= self._of_tenants[name]:
                # Its next job waits for one of its own, and holds nobody up.
                del self._lines[name]
                self.held_back = True
        if not self._lines:
            return None
        return self._lines[min(self._lines, key=self._order)].popleft()

    def started(self, job: Candidate, need: Room) -> None:
        """It has its turn, and room."""
        self._shares[job.tenant] = self._shares[job.tenant].plus(need)
        self._of_tenants[job.tenant] += 1
        self._of_keys[job.key_id] += 1
        self._turn += 1
        self._last_turns[job.tenant] = self._turn

    def _order(self, name: str) -> tuple[float, int, tuple[int, str]]:
        share = self._shares[name].share_of(self._whole)
        return share, self._last_turns[name], _turn(self._lines[name][0])


def choose(
    waiting: Iterable[Candidate],
    occupants: Sequence[Occupant],
    whole: Room,
    free: Room,
    now: float,
    turns: Mapping[str, int] = MappingProxyType({}),
    most_at_once: Callable[[str], int] = lambda _: 0,
    most_of_key: Callable[[str | None], int] = lambda _: 0,
) -> Choice:
    """Who starts now. `free` may be less than `whole` without the occupants: something else may be promised.

    `turns`: tenant to a number that is higher the later its last job started. `most_at_once`: tenant to how many of its
    jobs may run; 0: any number. `most_of_key`: the same for the id of a key.
    """
    lines = _Lines(waiting, occupants, whole, turns, most_at_once, most_of_key)
    chosen: list[str] = []
    running = list(occupants)
    blocked: Blocked | None = None
    beside = NOTHING
    while (job := lines.next()) is not None:
        need = Room(1, job.memory_bytes, job.millicpus).within(whole)
        lacks = free.lacks(need)
        until = now + job.wall_seconds
        if lacks is not None and blocked is None:
            starts_by, beside = reservation(need, running, free, now)
            blocked = Blocked(job.id, lacks, starts_by)
        if free.slots <= 0:
            break
        puts_off = blocked is not None and until > blocked.starts_by
        if lacks is not None or (puts_off and beside.lacks(need) is not None):
            continue
        if puts_off:
            beside = beside.minus(need)
        free = free.minus(need)
        running.append(Occupant(job.tenant, need, until, job.key_id))
        lines.started(job, need)
        chosen.append(job.id)
    return Choice(tuple(chosen), blocked, lines.held_back)


def reservation(
    need: Room, occupants: Iterable[Occupant], free: Room, now: float
) -> tuple[float, Room]:
    """When `need` fits at the latest, and what will be free beside it then."""
    for occupant in sorted(occupants, key=lambda each: each.until):
        free = free.plus(occupant.need)
        if free.lacks(need) is None:
            return max(now, occupant.until), free.minus(need)
    return math.inf, NOTHING


def _turn(job: Candidate) -> tuple[int, str]:
    """Highest priority first, then oldest: ids sort by time."""
    return (-job.priority, job.id)
