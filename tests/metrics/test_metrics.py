"""The figures: their names, types and labels, and that series are there before their first event."""

import ast
from pathlib import Path

from exposition import PROMISED, Exposition

from sandboxd.admission import Room
from sandboxd.isolation import features
from sandboxd.jobs import TERMINAL, Reason, Result, State, Stream, Usage
from sandboxd.metrics import ENDS, FEATURES, Metrics, Snapshot
from sandboxd.quotas.host import CONTROLLERS, OPTIONAL_CONTROLLERS
from sandboxd.sandbox_values import SandboxState

SNAPSHOT = Snapshot(
    jobs={State.QUEUED: 2, State.RUNNING: 1},
    oldest_waiting_seconds=1.5,
    drift=0,
    room=Room(4, 2**30, 4000),
    in_use=Room(1, 2**28, 500),
    slots_busy=1,
    parked=3,
    blank=2,
    pool_hits=7,
    pool_misses=2,
    pool_blanks=1,
    sandboxes={SandboxState.CREATING: 0, SandboxState.RUNNING: 2, SandboxState.PAUSED: 1},
    webhook_backlog=5,
)


def some_metrics() -> Metrics:
    return Metrics({"user namespaces": True, "overlay": False}, lambda: SNAPSHOT)


def scrape(metrics: Metrics) -> Exposition:
    return Exposition(metrics.render("text/plain")[0].decode())


def test_the_figures_are_those_that_are_promised() -> None:
    metrics = some_metrics()
    metrics.request("GET", "/v1/jobs", 200, 0.01)

    assert scrape(metrics).figures == PROMISED


def test_series_of_jobs_exist_before_the_first_job() -> None:
    fresh = scrape(some_metrics())

    for state, reasons in ENDS.items():
        assert fresh.value("sandboxd_job_duration_seconds_count", outcome=state) == 0
        for reason in reasons:
            assert fresh.value("sandboxd_jobs_finished_total", outcome=state, reason=reason) == 0
    for stream in Stream:
        assert fresh.value("sandboxd_log_bytes_total", stream=stream) == 0
    for mode in ("user", "system"):
        assert fresh.value("sandboxd_job_cpu_seconds_total", mode=mode) == 0
    for kind in ("wall_seconds", "cpu_seconds", "idle_seconds"):
        assert fresh.value("sandboxd_job_timeouts_total", kind=kind) == 0
    assert fresh.value("sandboxd_jobs_submitted_total", trigger="api") == 0
    assert fresh.value("sandboxd_retries_total", reason="sandbox_failed") == 0


def test_every_end_and_every_reason_of_an_end_has_its_series() -> None:
    on_the_way = {Reason.SUBMITTED, Reason.CLAIMED, Reason.STARTED, Reason.RETRY}
    on_the_way |= {Reason.IMAGE_PULL_STARTED, Reason.IMAGE_PULLED}
    on_the_way.add(Reason.SANDBOX_ENDED)  # of commands that are no jobs

    assert set(ENDS) == TERMINAL
    assert {reason for reasons in ENDS.values() for reason in reasons} == set(Reason) - on_the_way


def test_every_feature_of_the_host_has_a_label() -> None:
    source = ast.parse(Path(features.__file__).read_text())
    named = {
        node.args[0].value
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", None) in ("Feature", "_tried")
        and isinstance(node.args[0], ast.Constant)
    } | {
        node.value.value
        for node in ast.walk(source)
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", None) in ("name", "path")
        and isinstance(node.value, ast.Constant)
    }
    shown = scrape(some_metrics())

    cgroups = {f"cgroup {name}" for name in (*CONTROLLERS, *OPTIONAL_CONTROLLERS)}
    assert named | cgroups == set(FEATURES)
    labels = {each["feature"] for each in shown.labels("sandboxd_isolation_feature")}
    assert labels == set(FEATURES.values())
    assert all(label.isidentifier() and label.islower() for label in labels)
    assert shown.value("sandboxd_isolation_feature", feature="user_namespaces") == 1
    assert shown.value("sandboxd_isolation_feature", feature="overlay") == 0


def test_a_job_is_counted_once_where_it_belongs() -> None:
    metrics = some_metrics()
    usage = Usage(
        cpu_user_seconds=1.5,
        cpu_system_seconds=0.5,
        memory_peak_bytes=2**21,
        wall_seconds=2.0,
        queue_seconds=0.25,
        setup_seconds=0.02,
    )
    result = Result(
        state=State.TIMED_OUT, reason=Reason.WALL_SECONDS, usage=usage, started_at=1000.0
    )

    metrics.finished(result)
    metrics.logged(Stream.STDERR, 10, truncated=True)

    seen = scrape(metrics)
    assert seen.total("sandboxd_jobs_finished_total") == 1
    ended = {"outcome": "timed_out", "reason": "wall_seconds"}
    assert seen.value("sandboxd_jobs_finished_total", **ended) == 1
    assert seen.value("sandboxd_job_timeouts_total", kind="wall_seconds") == 1
    assert seen.value("sandboxd_job_cpu_seconds_total", mode="user") == 1.5
    assert seen.value("sandboxd_job_duration_seconds_sum", outcome="timed_out") == 2.0
    assert seen.value("sandboxd_job_queue_duration_seconds_sum", queue="default") == 0.25
    assert seen.value("sandboxd_cold_starts_total") == 1
    assert seen.value("sandboxd_job_memory_peak_bytes_bucket", le="4.194304e+06") == 1
    assert seen.value("sandboxd_job_memory_peak_bytes_bucket", le="1.048576e+06") == 0
    assert seen.value("sandboxd_log_bytes_total", stream="stderr") == 10
    assert seen.value("sandboxd_logs_truncated_total") == 1


def test_a_warm_start_is_no_cold_one_and_a_job_that_never_ran_is_neither() -> None:
    metrics = some_metrics()
    ended = {"state": State.SUCCEEDED, "reason": Reason.EXITED}
    metrics.finished(Result(**ended, usage=Usage(warm=True), started_at=1000.0))
    metrics.finished(Result(state=State.EXPIRED, reason=Reason.QUEUE_SECONDS))

    seen = scrape(metrics)
    assert seen.value("sandboxd_cold_starts_total") == 0
    assert seen.total("sandboxd_sandbox_start_duration_seconds_count") == 1


def test_figures_of_the_queue_are_those_of_the_moment_and_missing_when_the_store_is_silent() -> (
    None
):
    seen = scrape(some_metrics())
    silent = scrape(Metrics({}, lambda: None))

    assert seen.value("sandboxd_queue_depth", queue="default", state="queued") == 2
    assert seen.value("sandboxd_slots", state="warm") == 3
    assert seen.value("sandboxd_slots", state="blank") == 2
    assert seen.value("sandboxd_admission_memory_bytes", state="total") == 2**30
    assert seen.value("sandboxd_admission_cpus", state="in_use") == 0.5
    assert "sandboxd_queue_depth" not in silent.figures
    assert "sandboxd_jobs_finished_total" in silent.figures


def test_faults_and_lag_are_shown() -> None:
    metrics = some_metrics()
    metrics.retried(Reason.IMAGE_FAILED)
    metrics.lease_lost()
    metrics.reaped()
    metrics.loop_lag(0.125)

    seen = scrape(metrics)
    assert seen.value("sandboxd_retries_total", reason="image_failed") == 1
    assert seen.value("sandboxd_leases_lost_total") == 1
    assert seen.value("sandboxd_jobs_reaped_total") == 1
    assert seen.value("sandboxd_event_loop_lag_seconds") == 0.125


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    body, content_type = some_metrics().render("application/openmetrics-text; version=1.0.0")

    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
