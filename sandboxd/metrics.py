"""Figures for Prometheus: what they are called and who feeds them.

Base units, closed sets of label values, no ids and nothing that a user wrote in a label. One registry per service; a
scrape reads the queue's figures from where they are kept.
"""

import platform
from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sandboxd import __version__
from sandboxd.jobs import Result, State, Stream

RUN_BUCKETS = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600,
)  # fmt: skip
START_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
QUEUE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
MEMORY_BUCKETS = tuple(2.0**power for power in range(20, 36, 2))


class Snapshot(NamedTuple):
    """The figures of one moment that are kept elsewhere."""

    jobs: dict[State, int]
    """By state: waiting and active ones now."""
    oldest_waiting_seconds: float
    drift: int
    """Jobs accepted less those waiting, active or ended: not 0 means that one was lost or counted twice."""
    slots: int
    slots_busy: int
    parked: int
    pool_hits: int
    pool_misses: int


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
            ("total", now.slots),
            ("busy", now.slots_busy),
            ("warm", now.parked),
        ):
            slots.add_metric([kind], value)
        yield slots
        yield CounterMetricFamily(
            "sandboxd_warm_pool_hits", "Jobs that got a parked sandbox.", value=now.pool_hits
        )
        yield CounterMetricFamily(
            "sandboxd_warm_pool_misses", "Jobs that waited for theirs.", value=now.pool_misses
        )


class Metrics:
    """All figures of one service."""

    def __init__(self, features: dict[str, bool], snapshot: Callable[[], Snapshot | None]) -> None:
        """`features`: what the host offers, by name. `snapshot` is called by the thread that answers a scrape."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(_SnapshotCollector(snapshot))
        build = Gauge("sandboxd_build_info", "What runs.", ["version", "python"], registry=registry)
        build.labels(__version__, platform.python_version()).set(1)
        feature = Gauge(
            "sandboxd_isolation_feature", "What the host offers.", ["feature"], registry=registry
        )
        for name, there in features.items():
            feature.labels(name).set(there)
        self._requests = Counter(
            "sandboxd_http_requests",
            "Requests answered.",
            ["method", "route", "code"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "sandboxd_http_request_duration_seconds",
            "Time from a request to its answer.",
            ["method", "route"],
            registry=registry,
        )
        self._submitted = Counter(
            "sandboxd_jobs_submitted", "Jobs accepted.", ["trigger"], registry=registry
        )
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
        self._queue_seconds = Histogram(
            "sandboxd_job_queue_duration_seconds",
            "Time from acceptance to a free slot.",
            ["queue"],
            buckets=QUEUE_BUCKETS,
            registry=registry,
        )
        self._start_seconds = Histogram(
            "sandboxd_sandbox_start_duration_seconds",
            "Time from a free slot to a running command.",
            ["phase", "warm"],
            buckets=START_BUCKETS,
            registry=registry,
        )
        self._cpu_seconds = Counter(
            "sandboxd_job_cpu_seconds", "CPU time of jobs.", ["mode"], registry=registry
        )
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
        self._oom = Counter(
            "sandboxd_job_oom_kills", "Jobs that ran out of memory.", registry=registry
        )
        self._timeouts = Counter(
            "sandboxd_job_timeouts", "Jobs that ran out of time.", ["kind"], registry=registry
        )
        self._retries = Counter(
            "sandboxd_retries", "Attempts that will be repeated.", ["reason"], registry=registry
        )
        self._leases_lost = Counter(
            "sandboxd_leases_lost", "Attempts that another service took over.", registry=registry
        )
        self._log_bytes = Counter(
            "sandboxd_log_bytes", "Output kept.", ["stream"], registry=registry
        )
        self._logs_truncated = Counter(
            "sandboxd_logs_truncated", "Jobs whose output was cut.", registry=registry
        )

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answered request; `route` is the template, never the path itself."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(method, route).observe(seconds)

    def submitted(self) -> None:
        """A job was accepted."""
        self._submitted.labels("api").inc()

    def finished(self, result: Result) -> None:
        """A job reached its terminal state."""
        usage = result.usage
        self._finished.labels(result.state, result.reason).inc()
        self._run_seconds.labels(result.state).observe(usage.wall_seconds)
        self._queue_seconds.labels("default").observe(usage.queue_seconds)
        if result.started_at is not None:
            warm = "true" if usage.warm else "false"
            self._start_seconds.labels("total", warm).observe(usage.setup_seconds)
        self._cpu_seconds.labels("user").inc(usage.cpu_user_seconds or 0)
        self._cpu_seconds.labels("system").inc(usage.cpu_system_seconds or 0)
        self._throttled.inc(usage.cpu_throttled_seconds or 0)
        if usage.memory_peak_bytes is not None:
            self._memory.observe(usage.memory_peak_bytes)
        if result.state is State.OUT_OF_MEMORY:
            self._oom.inc()
        if result.state is State.TIMED_OUT:
            self._timeouts.labels(result.reason).inc()

    def logged(self, stream: Stream, size_bytes: int, *, truncated: bool) -> None:
        """What was kept of one stream of a job that ended."""
        self._log_bytes.labels(stream).inc(size_bytes)
        if truncated:
            self._logs_truncated.inc()

    def retried(self, reason: str) -> None:
        """An attempt will be repeated."""
        self._retries.labels(reason).inc()

    def lease_lost(self) -> None:
        """Another service had taken the job over."""
        self._leases_lost.inc()

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition (Prometheus text or OpenMetrics, as asked) and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self.registry), content_type

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serve `/metrics` on a port of its own, in threads. Returns what ends it. Raises OSError."""
        server, thread = start_http_server(port, addr=host, registry=self.registry)

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return close
