"""A scrape of the real service that has run jobs of each kind."""

import shutil
import subprocess

import patient_http
import pytest
from exposition import PROMISED, Exposition
from host_tests import host_required
from running_service import running_service
from waiting import wait_for

from sandboxd.client import Client
from sandboxd.metrics import FEATURES

MEMORY_HOG = "x = bytearray(1 << 30)\nfor i in range(0, len(x), 4096): x[i] = 1"


def run_jobs_of_each_kind(client: Client) -> None:
    client.run(["echo", "hello"])
    client.run(["false"])
    client.run(["sh", "-c", "kill -SEGV $$"])
    client.run(["no-such-command"])
    client.run(["sleep", "60"], limits={"wall_seconds": 0.2})
    client.run(["python3", "-c", MEMORY_HOG], limits={"memory": "32Mi"})
    client.run(["yes"], limits={"output_bytes": 4096})
    running = client.submit(["sleep", "60"])
    client.cancel(running.id)
    client.wait(running.id)


ENDS = [
    ("succeeded", "exited"),
    ("failed", "exited"),
    ("failed", "signalled"),
    ("failed", "command_not_found"),
    ("timed_out", "wall_seconds"),
    ("out_of_memory", "memory"),
    ("output_limit", "output_bytes"),
    ("cancelled", "cancelled_by_client"),
]


@pytest.mark.host
def test_a_scrape_of_the_real_service_has_every_figure_and_counts_every_job(
    prepared_host: None,
) -> None:
    with running_service() as service:
        with service.client() as client:
            run_jobs_of_each_kind(client)
        address = f"http://127.0.0.1:{service.metrics_port}/metrics"
        text = patient_http.get(address).text
        seen = Exposition(text)

        assert seen.figures == PROMISED
        for outcome, reason in ENDS:
            ended = {"outcome": outcome, "reason": reason}
            assert seen.value("sandboxd_jobs_finished_total", **ended) == 1, ended
        assert seen.total("sandboxd_jobs_finished_total") == len(ENDS)
        assert seen.total("sandboxd_jobs_submitted_total") == len(ENDS)
        assert seen.value("sandboxd_queue_conservation_drift") == 0
        assert seen.value("sandboxd_job_oom_kills_total") == 1
        assert seen.value("sandboxd_logs_truncated_total") == 1
        assert seen.value("sandboxd_log_bytes_total", stream="stdout") >= len("hello\n") + 4096
        assert seen.total("sandboxd_job_cpu_seconds_total") > 0
        features = {each["feature"] for each in seen.labels("sandboxd_isolation_feature")}
        assert features == set(FEATURES.values())
        for needed in ("account", "user_namespaces", "overlay", "sandbox", "cgroup_memory"):
            assert seen.value("sandboxd_isolation_feature", feature=needed) == 1
        check_with_promtool(text)

        def lag_seconds() -> float:
            return Exposition(patient_http.get(address).text).value(
                "sandboxd_event_loop_lag_seconds"
            )

        # Measured once a second, in which a loop with nothing to do may be in time.
        wait_for(lambda: lag_seconds() > 0, "the loop's lag is measured", seconds=30)


def check_with_promtool(text: str) -> None:
    """Prometheus's own opinion of names, types and help texts."""
    if shutil.which("promtool") is None:
        host_required("promtool is not installed")
    words = ["promtool", "check", "metrics"]
    checked = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
