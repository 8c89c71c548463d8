"""A sandbox that nobody keeps is given back, whatever becomes of its job."""

import asyncio
import time
from pathlib import Path

import pytest
from sandbox_bench import children_of

from sandboxd.execution import Execution
from sandboxd.ids import new_id
from sandboxd.jobs import Job, JobSpec, Reason, State
from sandboxd.running.commands import Stop
from sandboxd.running.runner import NotAccepted
from sandboxd.settings import Settings

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]


@pytest.mark.parametrize("keep_on_failure_seconds", [None, 60.0])
def test_that_of_a_job_which_was_not_written_down(
    keep_on_failure_seconds: float | None, tmp_path: Path
) -> None:
    settings = Settings()
    now = time.time()
    job = Job(
        id=new_id("job"),
        tenant="default",
        spec=JobSpec(
            image="host",
            command=("true",),
            limits=settings.limits,
            keep_on_failure_seconds=keep_on_failure_seconds,
        ),
        state=State.STARTING,
        reason=Reason.CLAIMED,
        created_at=now,
        queued_at=now,
    )

    async def run() -> tuple[int, int]:
        execution = Execution(
            settings, state=tmp_path / "state", images_directory=tmp_path / "images", parked=0
        )
        try:
            await execution.launcher.start()
            launcher = execution.launcher.process
            assert launcher is not None
            before = len(children_of(launcher.pid))
            accepted = asyncio.get_running_loop().create_future()
            accepted.set_exception(NotAccepted)
            with pytest.raises(NotAccepted):
                await execution.runner.run(job, Stop(), lambda *_: True, accepted=accepted)
            await execution.pool.settled()
            return before, len(children_of(launcher.pid))
        finally:
            await execution.close()

    before, after = asyncio.run(run())
    assert after == before
