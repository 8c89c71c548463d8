"""What goes into jobs and comes out of them is counted."""

from sandboxd.jobs import Artifact, InputFile, JobSpec, Reason, Result, State
from sandboxd.metrics import Metrics
from sandboxd.settings import DEFAULT_LIMITS


def test_content_of_files_is_counted_by_its_direction() -> None:
    metrics = Metrics({}, lambda: None)
    file = InputFile(path="a", mode=0o644, size_bytes=100)
    directory = InputFile(path="d", mode=0o755)
    artifact = Artifact(path="b", size_bytes=7, mode=0o644, sha256="0" * 64, offset=0)

    metrics.submitted(
        JobSpec(image="host", command=("true",), files=(file, directory), limits=DEFAULT_LIMITS)
    )
    metrics.finished(
        Result(state=State.SUCCEEDED, reason=Reason.EXITED, artifacts=(artifact, artifact))
    )

    text = metrics.render("text/plain")[0].decode()
    assert 'sandboxd_job_file_bytes_total{direction="in"} 100.0' in text
    assert 'sandboxd_job_file_bytes_total{direction="out"} 14.0' in text
