"""The figures of sandboxd as they are promised, and an exposition read back."""

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families

PROMISED = {
    "sandboxd_attack_last_run_timestamp_seconds": ("gauge", set()),
    "sandboxd_attack_rows": ("gauge", {"outcome"}),
    "sandboxd_build_info": ("gauge", {"version", "commit", "python"}),
    "sandboxd_cold_starts_total": ("counter", set()),
    "sandboxd_event_loop_lag_seconds": ("gauge", set()),
    "sandboxd_http_request_duration_seconds": ("histogram", {"method", "route"}),
    "sandboxd_http_requests_total": ("counter", {"method", "route", "code"}),
    "sandboxd_image_cache_hits_total": ("counter", set()),
    "sandboxd_image_pull_bytes_total": ("counter", set()),
    "sandboxd_image_pull_duration_seconds": ("histogram", {"outcome"}),
    "sandboxd_isolation_feature": ("gauge", {"feature"}),
    "sandboxd_job_cpu_seconds_total": ("counter", {"mode"}),
    "sandboxd_job_cpu_throttled_seconds_total": ("counter", set()),
    "sandboxd_job_duration_seconds": ("histogram", {"outcome"}),
    "sandboxd_job_memory_peak_bytes": ("histogram", set()),
    "sandboxd_admission_cpus": ("gauge", {"state"}),
    "sandboxd_admission_memory_bytes": ("gauge", {"state"}),
    "sandboxd_job_oom_kills_total": ("counter", set()),
    "sandboxd_job_queue_duration_seconds": ("histogram", {"queue"}),
    "sandboxd_job_timeouts_total": ("counter", {"kind"}),
    "sandboxd_jobs_finished_total": ("counter", {"outcome", "reason"}),
    "sandboxd_jobs_reaped_total": ("counter", set()),
    "sandboxd_jobs_submitted_total": ("counter", {"trigger"}),
    "sandboxd_leases_lost_total": ("counter", set()),
    "sandboxd_log_bytes_total": ("counter", {"stream"}),
    "sandboxd_job_file_bytes_total": ("counter", {"direction"}),
    "sandboxd_logs_truncated_total": ("counter", set()),
    "sandboxd_queue_conservation_drift": ("gauge", set()),
    "sandboxd_queue_depth": ("gauge", {"queue", "state"}),
    "sandboxd_queue_oldest_age_seconds": ("gauge", {"queue"}),
    "sandboxd_quota_rejections_total": ("counter", {"policy"}),
    "sandboxd_retries_total": ("counter", {"reason"}),
    "sandboxd_sandbox_start_duration_seconds": ("histogram", {"phase", "warm"}),
    "sandboxd_sandbox_exec_duration_seconds": ("histogram", set()),
    "sandboxd_sandbox_execs_total": ("counter", {"outcome"}),
    "sandboxd_webhook_backlog": ("gauge", set()),
    "sandboxd_webhook_deliveries_total": ("counter", {"outcome"}),
    "sandboxd_sandboxes": ("gauge", {"state"}),
    "sandboxd_sandboxes_created_total": ("counter", set()),
    "sandboxd_sandboxes_ended_total": ("counter", {"reason"}),
    "sandboxd_slots": ("gauge", {"state"}),
    "sandboxd_warm_pool_hits_total": ("counter", set()),
    "sandboxd_warm_pool_misses_total": ("counter", set()),
    "sandboxd_warm_pool_blanks_total": ("counter", set()),
}
"""Name to type and labels. Dashboards and alerts of others depend on it: a change here is one for the changelog."""


class Exposition:
    """A scrape, read as Prometheus reads it."""

    def __init__(self, text: str) -> None:
        self.figures: dict[str, tuple[str, set[str]]] = {}
        self._values: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels: set[str] = set()
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                labels |= sample.labels.keys() - {"le"}
                values = self._values.setdefault(sample.name, {})
                values[frozenset(sample.labels.items())] = sample.value
            if name.startswith("sandboxd_") and not name.endswith("_created"):
                self.figures[name] = (family.type, labels)

    def value(self, name: str, **labels: str) -> float:
        """Of one series; KeyError if it does not exist."""
        return self._values[name][frozenset(labels.items())]

    def total(self, name: str) -> float:
        """Of all series of a name."""
        return sum(self._values[name].values())

    def labels(self, name: str) -> Iterator[dict[str, str]]:
        """Of each series of a name."""
        return (dict(key) for key in self._values[name])
