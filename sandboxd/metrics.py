"""Figures for Prometheus: what they are called and who feeds them.

Base units, closed sets of label values, no ids and nothing that a user wrote in a label. Where the values of a label are
known the series exist from the start: `increase()` sees no first event of a series that begins with it. One registry per
service; a scrape reads the queue's figures from where they are kept.
"""

import platform
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Literal, NamedTuple, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sandboxd import __version__, metrics_port
from sandboxd.admission import Room
from sandboxd.attack.verdict import Outcome
from sandboxd.images.puller import PullFigures, PullOutcome
from sandboxd.jobs import JobSpec, Reason, Result, State, Stream
from sandboxd.quotas.tenants import POLICIES
from sandboxd.sandbox_values import SandboxReason, SandboxState

RUN_BUCKETS = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600,
)  # fmt: skip
START_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
QUEUE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PULL_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
MEMORY_BUCKETS = tuple(2.0**power for power in range(20, 36, 2))

ENDS: dict[State, tuple[Reason, ...]] = {
    State.SUCCEEDED: (Reason.EXITED,),
    State.FAILED: (
        Reason.EXITED,
        Reason.SIGNALLED,
        Reason.COMMAND_NOT_FOUND,
        Reason.COMMAND_NOT_EXECUTABLE,
        Reason.WORKDIR_UNUSABLE,
        Reason.WRONG_ANSWER,
        Reason.CHECKER_FAILED,
        Reason.FILE_UNUSABLE,
        Reason.WRONG_ANSWER,
        Reason.CHECKER_FAILED,
    ),
    State.TIMED_OUT: (Reason.WALL_SECONDS, Reason.CPU_SECONDS, Reason.IDLE_SECONDS),
    State.OUT_OF_MEMORY: (Reason.MEMORY,),
    State.OUTPUT_LIMIT: (Reason.OUTPUT_BYTES,),
    State.NETWORK_LIMIT: (Reason.NETWORK_BYTES,),
    State.CANCELLED: (Reason.CANCELLED_BY_CLIENT, Reason.CLIENT_GONE),
    State.EXPIRED: (Reason.QUEUE_SECONDS,),
    State.ERROR: (
        Reason.SHUTDOWN,
        Reason.SERVICE_LOST,
        Reason.SANDBOX_FAILED,
        Reason.IMAGE_FAILED,
        Reason.LOG_FAILED,
        Reason.FILES_FAILED,
        Reason.INTERNAL,
    ),
}
"""How a job can end, and why."""

FEATURES = {
    "account": "account",
    "kernel": "kernel",
    "user namespaces": "user_namespaces",
    "subordinate ids": "subordinate_ids",
    "supplementary groups": "supplementary_groups",
    "namespaces": "namespaces",
    "overlay": "overlay",
    "proc and sysfs": "proc_sysfs",
    "sandbox": "sandbox",
    "core dumps": "core_dumps",
    "/dev/net/tun": "tun",
    "cgroup memory": "cgroup_memory",
    "cgroup cpu": "cgroup_cpu",
    "cgroup cpuacct": "cgroup_cpuacct",
    "cgroup pids": "cgroup_pids",
    "cgroup io": "cgroup_io",
    "cgroup freezer": "cgroup_freezer",
    "cgroup blkio": "cgroup_blkio",
    "cgroup cpuset": "cgroup_cpuset",
    "egress": "egress",
}
"""What `isolation.features` calls a feature, and the cgroup controllers that we may use, to their labels: the first is for
people, the second for queries."""


SANDBOX_ENDS = (
    SandboxReason.DELETED,
    SandboxReason.IDLE_SECONDS,
    SandboxReason.TTL_SECONDS,
    SandboxReason.MEMORY,
    SandboxReason.INIT_DIED,
    SandboxReason.SHUTDOWN,
)
EXEC_ENDS = (
    State.SUCCEEDED,
    State.FAILED,
    State.TIMED_OUT,
    State.OUT_OF_MEMORY,
    State.OUTPUT_LIMIT,
    State.CANCELLED,
    State.ERROR,
)


class Snapshot(NamedTuple):
    """The figures of one moment that are kept elsewhere."""

    jobs: dict[State, int]
    """By state: waiting and active ones now."""
    oldest_waiting_seconds: float
    drift: int
    """Jobs accepted less those waiting, active or ended: not 0 means that one was lost or counted twice."""
    room: Room
    """All that may be in use at once."""
    in_use: Room
    slots_busy: int
    parked: int
    blank: int
    pool_hits: int
    pool_misses: int
    pool_blanks: int
    sandboxes: dict[SandboxState, int]
    """Those that live until they are told to end, by state."""
    image_hits: int = 0
    """How often an image was here when it was wanted."""
    webhook_backlog: int = 0
    """Events that are to be delivered yet."""


class Metrics:
    """All figures of one service."""

    def __init__(self, features: dict[str, bool], snapshot: Callable[[], Snapshot | None]) -> None:
        """`features`: what the host offers, by name. `snapshot` is called by the thread that answers a scrape."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(_SnapshotCollector(snapshot))
        _register_build(registry)
        _register_features(registry, features)
        self._requests = _RequestFigures(registry)
        self._ends = _EndFigures(registry)
        self._usage = _UsageFigures(registry)
        self._faults = _FaultFigures(registry)
        self._logs = _LogFigures(registry)
        self._file_bytes = Counter(
            "sandboxd_job_file_bytes", "Content of jobs' files.", ["direction"], registry=registry
        )
        for direction in ("in", "out"):
            self._file_bytes.labels(direction)
        self._sandboxes = _SandboxFigures(registry)
        self._images = _ImageFigures(registry)
        self._attack = _AttackFigures(registry)
        submitted = Counter(
            "sandboxd_jobs_submitted", "Jobs accepted.", ["trigger"], registry=registry
        )
        self._submitted = submitted.labels("api")
        self._over_quota = Counter(
            "sandboxd_quota_rejections",
            "Requests refused because of a tenant's quota.",
            ["policy"],
            registry=registry,
        )
        for policy in POLICIES:
            self._over_quota.labels(policy)
        self._webhooks = Counter(
            "sandboxd_webhook_deliveries",
            "Attempts to deliver an event to the operator's webhook.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("delivered", "failed", "given_up"):
            self._webhooks.labels(outcome)
        self._loop_lag = Gauge(
            "sandboxd_event_loop_lag_seconds",
            "How late the event loop last came to something that was due.",
            registry=registry,
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answered request; `route` is the template, never the path itself."""
        self._requests.answered(method, route, status, seconds)

    def over_quota(self, policy: str) -> None:
        """A request was refused because of this quota."""
        self._over_quota.labels(policy).inc()

    def webhook(self, outcome: Literal["delivered", "failed", "given_up"]) -> None:
        """An attempt to deliver an event; `failed`: there will be another one."""
        self._webhooks.labels(outcome).inc()

    def submitted(self, spec: JobSpec) -> None:
        """A job was accepted."""
        self._submitted.inc()
        if spec.files:
            size_bytes = sum(file.size_bytes or 0 for file in spec.files)
            self._file_bytes.labels("in").inc(size_bytes)

    def finished(self, result: Result) -> None:
        """A job reached its terminal state."""
        self._ends.finished(result)
        self._usage.finished(result)
        if result.artifacts:
            size_bytes = sum(artifact.size_bytes for artifact in result.artifacts)
            self._file_bytes.labels("out").inc(size_bytes)

    def logged(self, stream: Stream, size_bytes: int, *, truncated: bool) -> None:
        """What was kept of one stream of a job that ended."""
        self._logs.kept(stream, size_bytes, truncated=truncated)

    def sandbox_created(self) -> None:
        """A sandbox that lives until it is told to end was made."""
        self._sandboxes.created.inc()

    def sandbox_ended(self, reason: SandboxReason) -> None:
        """It has ended."""
        self._sandboxes.ended.labels(reason).inc()

    def exec_finished(self, result: Result) -> None:
        """A command in one is over."""
        self._sandboxes.exec_finished(result)

    def pulled(self, figures: PullFigures) -> None:
        """A pull of an image ended."""
        self._images.pulled(figures)

    def retried(self, reason: str) -> None:
        """An attempt will be repeated."""
        self._faults.retries.labels(reason).inc()

    def lease_lost(self) -> None:
        """Another service had taken the job over."""
        self._faults.leases_lost.inc()

    def reaped(self) -> None:
        """A job that a dead service had left active was settled: ended, or put back to be tried again."""
        self._faults.reaped.inc()

    def loop_lag(self, seconds: float) -> None:
        """How late the event loop was; to be measured at regular intervals."""
        self._loop_lag.set(seconds)

    def attacked(self, rows: Mapping[Outcome, int], at: float) -> None:
        """The service was attacked by itself: how many rows of the catalogue ended how, and when (Unix time)."""
        self._attack.attacked(rows, at)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition (Prometheus text or OpenMetrics, as asked) and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serve `/metrics` on a port of its own, in threads. Returns what ends it. Raises OSError."""
        return metrics_port.serve(host, port, self.render)


class _RequestFigures:
    """Requests to the API. Their series begin with the first request: routes are the API's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "sandboxd_http_requests",
            "Requests answered.",
            ["method", "route", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "sandboxd_http_request_duration_seconds",
            "Time from a request to its answer.",
            ["method", "route"],
            registry=registry,
        )

        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        """Found once: each look by labels makes words of them again, under a lock."""

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        series = self._series.get((method, route, status))
        if series is None:
            series = (
                self._requests.labels(method, route, str(status)),
                self._seconds.labels(method, route),
            )
            self._series[method, route, status] = series
        requests, took = series
        requests.inc()
        took.observe(seconds)


class _EndFigures:
    """How jobs ended, and how long they waited and ran."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._finished = Counter(
            "sandboxd_jobs_finished", "Jobs that ended.", ["outcome", "reason"], registry=registry
        )
        self._run_seconds = Histogram(
            "sandboxd_job_duration_seconds",
            "Wall time of commands.",
            ["outcome"],
            buckets=RUN_BUCKETS,
            registry=registry,
        )
        queue_seconds = Histogram(
            "sandboxd_job_queue_duration_seconds",
            "Time from acceptance to a free slot.",
            ["queue"],
            buckets=QUEUE_BUCKETS,
            registry=registry,
        )
        self._queue_seconds = queue_seconds.labels("default")
        self._oom = Counter(
            "sandboxd_job_oom_kills", "Jobs that ran out of memory.", registry=registry
        )
        self._timeouts = Counter(
            "sandboxd_job_timeouts", "Jobs that ran out of time.", ["kind"], registry=registry
        )
        for state, reasons in ENDS.items():
            self._run_seconds.labels(state)
            for reason in reasons:
                self._finished.labels(state, reason)
        for reason in ENDS[State.TIMED_OUT]:
            self._timeouts.labels(reason)

    def finished(self, result: Result) -> None:
        self._finished.labels(result.state, result.reason).inc()
        self._run_seconds.labels(result.state).observe(result.usage.wall_seconds)
        self._queue_seconds.observe(result.usage.queue_seconds)
        if result.state is State.OUT_OF_MEMORY:
            self._oom.inc()
        if result.state is State.TIMED_OUT:
            self._timeouts.labels(result.reason).inc()


class _UsageFigures:
    """What jobs used: time to start, processor, memory."""

    def __init__(self, registry: CollectorRegistry) -> None:
        start_seconds = Histogram(
            "sandboxd_sandbox_start_duration_seconds",
            "Time from a free slot to a running command.",
            ["phase", "warm"],
            buckets=START_BUCKETS,
            registry=registry,
        )
        self._warm_start_seconds = start_seconds.labels("total", "true")
        self._cold_start_seconds = start_seconds.labels("total", "false")
        self._cold_starts = Counter(
            "sandboxd_cold_starts",
            "Commands that ran in a sandbox made for them.",
            registry=registry,
        )
        cpu_seconds = Counter(
            "sandboxd_job_cpu_seconds", "CPU time of jobs.", ["mode"], registry=registry
        )
        self._user_seconds = cpu_seconds.labels("user")
        self._system_seconds = cpu_seconds.labels("system")
        self._throttled = Counter(
            "sandboxd_job_cpu_throttled_seconds",
            "Time that jobs were throttled.",
            registry=registry,
        )
        self._memory = Histogram(
            "sandboxd_job_memory_peak_bytes",
            "Peak memory of jobs.",
            buckets=MEMORY_BUCKETS,
            registry=registry,
        )

    def finished(self, result: Result) -> None:
        usage = result.usage
        if result.started_at is not None:
            if usage.warm:
                self._warm_start_seconds.observe(usage.setup_seconds)
            else:
                self._cold_start_seconds.observe(usage.setup_seconds)
                self._cold_starts.inc()
        self._user_seconds.inc(usage.cpu_user_seconds or 0)
        self._system_seconds.inc(usage.cpu_system_seconds or 0)
        self._throttled.inc(usage.cpu_throttled_seconds or 0)
        if usage.memory_peak_bytes is not None:
            self._memory.observe(usage.memory_peak_bytes)


class _FaultFigures:
    """What went wrong with attempts, and was mended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.retries = Counter(
            "sandboxd_retries", "Attempts that will be repeated.", ["reason"], registry=registry
        )
        for reason in ENDS[State.ERROR]:
            self.retries.labels(reason)
        self.leases_lost = Counter(
            "sandboxd_leases_lost", "Attempts that another service took over.", registry=registry
        )
        self.reaped = Counter(
            "sandboxd_jobs_reaped", "Jobs of a dead service that were settled.", registry=registry
        )


class _LogFigures:
    """Output of jobs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._bytes = Counter("sandboxd_log_bytes", "Output kept.", ["stream"], registry=registry)
        for stream in Stream:
            self._bytes.labels(stream)
        self._truncated = Counter(
            "sandboxd_logs_truncated", "Streams of jobs that were cut.", registry=registry
        )

    def kept(self, stream: Stream, size_bytes: int, *, truncated: bool) -> None:
        self._bytes.labels(stream).inc(size_bytes)
        if truncated:
            self._truncated.inc()


class _AttackFigures:
    """The attack at the service's start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows = Gauge(
            "sandboxd_attack_rows",
            "Rows of the attack catalogue that the service tried on itself last, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self._last_run = Gauge(
            "sandboxd_attack_last_run_timestamp_seconds",
            "When it did so; 0: not since it started.",
            registry=registry,
        )
        for outcome in Outcome:
            self._rows.labels(outcome)

    def attacked(self, rows: Mapping[Outcome, int], at: float) -> None:
        for outcome, number in rows.items():
            self._rows.labels(outcome).set(number)
        self._last_run.set(at)


class _SandboxFigures:
    """Sandboxes that live until they are told to end, and commands in them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.created = Counter("sandboxd_sandboxes_created", "Sandboxes made.", registry=registry)
        self.ended = Counter(
            "sandboxd_sandboxes_ended", "Sandboxes that ended.", ["reason"], registry=registry
        )
        for reason in SANDBOX_ENDS:
            self.ended.labels(reason)
        self._execs = Counter(
            "sandboxd_sandbox_execs", "Commands run in sandboxes.", ["outcome"], registry=registry
        )
        self._seconds = Histogram(
            "sandboxd_sandbox_exec_duration_seconds",
            "Wall time of commands in sandboxes.",
            buckets=RUN_BUCKETS,
            registry=registry,
        )
        for state in EXEC_ENDS:
            self._execs.labels(state)

    def exec_finished(self, result: Result) -> None:
        self._execs.labels(result.state).inc()
        self._seconds.observe(result.usage.wall_seconds)


class _ImageFigures:
    """Images that came from registries."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "sandboxd_image_pull_duration_seconds",
            "Time that pulls of images took.",
            ["outcome"],
            buckets=PULL_BUCKETS,
            registry=registry,
        )
        self._bytes = Counter(
            "sandboxd_image_pull_bytes",
            "Layers that were fetched from registries.",
            registry=registry,
        )
        for outcome in get_args(PullOutcome):
            self._seconds.labels(outcome)

    def pulled(self, figures: PullFigures) -> None:
        self._seconds.labels(figures.outcome).observe(figures.seconds)
        self._bytes.inc(figures.fetched_bytes)


def _register_build(registry: CollectorRegistry) -> None:
    build = Gauge(
        "sandboxd_build_info", "What runs.", ["version", "commit", "python"], registry=registry
    )
    build.labels(__version__, _commit(), platform.python_version()).set(1)


def _commit() -> str:
    """What whoever built the package wrote to its file COMMIT."""
    try:
        return (resources.files("sandboxd") / "COMMIT").read_text().strip() or "unknown"
    except FileNotFoundError:
        return "unknown"


def _register_features(registry: CollectorRegistry, features: dict[str, bool]) -> None:
    feature = Gauge(
        "sandboxd_isolation_feature", "What the host offers.", ["feature"], registry=registry
    )
    for name, label in FEATURES.items():
        feature.labels(label).set(features.get(name, False))


class _SnapshotCollector(Collector):
    """Asks for a snapshot at scrape time and turns it into metrics."""

    def __init__(self, snapshot: Callable[[], Snapshot | None]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Nothing: so that registering does not ask for a snapshot."""
        return []

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        now = self._snapshot()
        if now is None:
            return  # The store does not answer; the rest of the figures still does.
        depth = GaugeMetricFamily(
            "sandboxd_queue_depth", "Jobs that wait or are active.", labels=["queue", "state"]
        )
        for state in (State.QUEUED, State.RETRYING, State.STARTING, State.RUNNING):
            depth.add_metric(["default", state], now.jobs.get(state, 0))
        yield depth
        age = GaugeMetricFamily(
            "sandboxd_queue_oldest_age_seconds", "Age of the oldest waiting job.", labels=["queue"]
        )
        age.add_metric(["default"], now.oldest_waiting_seconds)
        yield age
        yield GaugeMetricFamily(
            "sandboxd_queue_conservation_drift",
            "Accepted jobs less those waiting, active and ended; must be 0.",
            value=now.drift,
        )
        slots = GaugeMetricFamily("sandboxd_slots", "Places for jobs.", labels=["state"])
        for kind, value in (
            ("total", now.room.slots),
            ("busy", now.slots_busy),
            ("warm", now.parked),
            ("blank", now.blank),
        ):
            slots.add_metric([kind], value)
        yield slots
        for name, text, whole, used in (
            ("memory_bytes", "Memory", now.room.memory_bytes, now.in_use.memory_bytes),
            ("cpus", "CPU rates", now.room.millicpus / 1000, now.in_use.millicpus / 1000),
        ):
            figure = GaugeMetricFamily(
                f"sandboxd_admission_{name}",
                f"{text} that may be given to what runs at once, and that is given.",
                labels=["state"],
            )
            figure.add_metric(["total"], whole)
            figure.add_metric(["in_use"], used)
            yield figure
        sandboxes = GaugeMetricFamily(
            "sandboxd_sandboxes", "Sandboxes that live until told to end.", labels=["state"]
        )
        for state_of_sandbox, count in now.sandboxes.items():
            sandboxes.add_metric([state_of_sandbox], count)
        yield sandboxes
        yield GaugeMetricFamily(
            "sandboxd_webhook_backlog",
            "Events for the operator's webhook that are to be delivered yet.",
            value=now.webhook_backlog,
        )
        yield CounterMetricFamily(
            "sandboxd_image_cache_hits", "Images that were here when wanted.", value=now.image_hits
        )
        yield CounterMetricFamily(
            "sandboxd_warm_pool_hits", "Jobs that got a parked sandbox.", value=now.pool_hits
        )
        yield CounterMetricFamily(
            "sandboxd_warm_pool_misses", "Jobs that waited for theirs.", value=now.pool_misses
        )
        yield CounterMetricFamily(
            "sandboxd_warm_pool_blanks",
            "Of these, jobs whose sandbox was begun before.",
            value=now.pool_blanks,
        )
