"""What a job used, moment by moment: while it runs and afterwards, and no more of it than is bounded."""

import asyncio
import json
from pathlib import Path

import pytest
from running_service import RunningService
from waiting import TIME_FACTOR, wait_for

from sandboxd.client import Client, NotFound
from sandboxd.errors import SandboxFailed
from sandboxd.quotas.usage import CgroupNow
from sandboxd.running import sampling
from sandboxd.running.sampling import MOST_SAMPLES, Samples

BURNED_SECONDS = 0.6 * TIME_FACTOR
"""At least, however busy the machine is."""
BURN = f"""
import time
held = bytearray(32 * 2**20)
end = time.monotonic() + {TIME_FACTOR}
while time.monotonic() < end or time.process_time() < {BURNED_SECONDS}:
    pass
"""
BURN_ON = """
held = bytearray(32 * 2**20)
while True:
    pass
"""


def test_cpu_time_memory_and_processes_of_each_moment_are_kept(client: Client) -> None:
    job = client.submit(["python3", "-c", BURN_ON])

    def has_burned() -> bool:
        taken = client.stats(job.id)
        return len(taken) >= 4 and taken[-1].cpu_seconds > 0.3 * TIME_FACTOR

    wait_for(has_burned, "there are samples of what it used")
    client.cancel(job.id, grace_seconds=0)
    job = client.wait(job.id)
    samples = client.stats(job.id)

    assert 4 <= len(samples) <= 10 * max(TIME_FACTOR, job.usage.wall_seconds)
    used = [sample.cpu_seconds for sample in samples]
    assert used == sorted(used)
    assert 0.3 * TIME_FACTOR < used[-1] <= job.usage.cpu_seconds
    assert max(sample.memory_bytes for sample in samples) > 32 * 2**20
    # The last may have been taken between the command's end and the moment in which the service heard of it.
    assert {sample.pids for sample in samples[1:-1]} == {1}
    first, last = samples[0].time, samples[-1].time
    assert job.started_at <= first < last <= job.finished_at


@pytest.mark.skipif(not Path("/sys/fs/cgroup/cpu.pressure").exists(), reason="cgroup v2 counts it")
def test_how_long_a_job_waited_for_a_cpu_is_told(client: Client) -> None:
    """A limit on its rate makes it wait, as others that run do."""
    job = client.run(["python3", "-c", BURN], limits={"cpus": 0.2})
    last = client.stats(job.id)[-1]

    assert job.usage.cpu_pressure_seconds > 0.2 * TIME_FACTOR
    assert (job.usage.memory_pressure_seconds, job.usage.io_pressure_seconds) >= (0, 0)
    assert 0 < last.cpu_pressure_seconds <= job.usage.cpu_pressure_seconds
    assert last.cpu_full_pressure_seconds <= last.cpu_pressure_seconds


@pytest.mark.skipif(Path("/sys/fs/cgroup/cpu.pressure").exists(), reason="cgroup v2 counts it")
def test_waiting_is_unknown_where_nothing_counts_it(client: Client) -> None:
    job = client.run(["sleep", str(2 * TIME_FACTOR)])

    assert job.usage.cpu_pressure_seconds is None
    assert client.stats(job.id)[-1].cpu_pressure_seconds is None


def test_a_job_that_runs_has_some_already(client: Client) -> None:
    job = client.submit(["sleep", "600"])
    wait_for(lambda: len(client.stats(job.id)) >= 3, "there are three samples")
    client.cancel(job.id, grace_seconds=0)
    ended = client.wait(job.id)
    assert len(client.stats(ended.id)) >= 3


def test_a_job_that_is_over_at_once_has_none_and_an_unknown_one_is_not_found(
    client: Client,
) -> None:
    # On a busy machine not each is over at once, on a slow one none.
    least = min(len(client.stats(client.run(["true"]).id)) for _ in range(5))
    assert least <= TIME_FACTOR - 1
    with pytest.raises(NotFound):
        client.stats("job_00000000000000000000000000")


def test_they_are_gone_with_the_job(client: Client) -> None:
    job = client.run(["sleep", str(2 * TIME_FACTOR)])
    assert client.stats(job.id)
    client.delete(job.id)
    with pytest.raises(NotFound):
        client.stats(job.id)


def test_the_command_line_shows_them(real_service: RunningService, client: Client) -> None:
    job = client.run(["python3", "-c", BURN])
    url = ("--url", real_service.url)
    table = real_service.command("jobs", "stats", job.id, *url).stdout.splitlines()
    as_json = json.loads(real_service.command("jobs", "stats", job.id, "--json", *url).stdout)

    assert table[0].split("\t")[1:] == ["CPU", "CPU time", "memory", "processes"]
    assert len(table) == 1 + len(as_json)
    assert table[-1].split("\t")[1].endswith("%")


def test_a_long_job_has_its_whole_life_in_a_bounded_number_of_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "_FIRST_SECONDS", 0.0001)
    monkeypatch.setattr(sampling, "_USUAL_SECONDS", 0.0001)

    async def run() -> Samples:
        samples, looks, enough = Samples(), 0, asyncio.Event()
        told: list[CgroupNow] = []

        def look() -> CgroupNow:
            nonlocal looks
            looks += 1
            if looks > 3 * MOST_SAMPLES:
                enough.set()
                raise SandboxFailed("cgroup cpu.stat", "gone")
            return CgroupNow(cpu_seconds=float(looks))

        samples.start(look, told.append)
        await enough.wait()
        samples.stop()
        samples.stop()
        assert len(told) == 3 * MOST_SAMPLES
        return samples

    taken = asyncio.run(run()).taken
    assert MOST_SAMPLES // 2 <= len(taken) < MOST_SAMPLES
    seen = [sample.cpu_seconds for sample in taken]
    assert seen == sorted(seen)
    assert seen[0] < 10
    assert seen[-1] > 2.5 * MOST_SAMPLES
