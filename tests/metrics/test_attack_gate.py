"""A service that attacks itself at its start is ready when all was stopped, and not before."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from exposition import Exposition
from running_service import data_directory, running_service
from sandbox_bench import ALLOW_ALL_CALLS, launchers_changed

from sandboxd.app import Service
from sandboxd.attack.catalogue import ROWS
from sandboxd.settings import CEILINGS, IsolationSettings, Settings, StoreSettings

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("prepared_host")]

Mode = Literal["off", "warn", "gate"]


def settings_for(directory: Path, mode: Mode) -> Settings:
    return Settings(
        store=StoreSettings(data_dir=str(directory)),
        isolation=IsolationSettings(attack_at_start=mode),
    )


async def readiness_before_and_after(
    settings: Settings,
) -> tuple[dict[str, Any], dict[str, Any], str]:
    async with Service.start(settings) as service:
        before = await service.readiness()
        await service.attack_gate.finished.wait()
        after = await service.readiness()
        figures, _ = await asyncio.to_thread(service.metrics.render, "text/plain")
    return before, after, figures.decode()


def test_a_service_that_stops_everything_becomes_ready() -> None:
    with running_service(isolation_attack_at_start="gate") as service:
        with service.http() as http:
            ready = http.get("/readyz").json()
            seen = Exposition(http.get("/metrics").text)
        with service.client() as client:
            jobs = client.list().data
        told = [event for event in service.events() if event["event"].startswith("attack")]

    assert ready["checks"]["attack"] is True
    assert "code" not in ready
    assert seen.value("sandboxd_attack_rows", outcome="stopped") == len(ROWS)
    assert seen.value("sandboxd_attack_rows", outcome="not_stopped") == 0
    assert seen.value("sandboxd_attack_last_run_timestamp_seconds") > 0
    assert jobs == []  # They are another tenant's.
    assert [event["event"] for event in told] == ["attack passed"]
    assert told[0]["rows"] == len(ROWS)


@pytest.mark.parametrize(("mode", "ready"), [("gate", False), ("warn", True)])
def test_a_service_without_a_wall_stays_unready_or_warns(mode: Mode, ready: bool) -> None:
    with launchers_changed(ALLOW_ALL_CALLS), data_directory() as directory:
        before, after, figures = asyncio.run(
            readiness_before_and_after(settings_for(directory, mode))
        )

    assert (before["ready"], after["ready"]) == (ready, ready)
    codes = (before.get("code"), after.get("code"))
    assert codes == ((None, None) if ready else ("attack_running", "attack_not_passed"))
    assert Exposition(figures).value("sandboxd_attack_rows", outcome="not_stopped") > 0


def test_an_attack_that_cannot_be_carried_out_does_not_open_the_gate() -> None:
    with data_directory() as directory:
        ceilings = msgspec.structs.replace(CEILINGS, wall_seconds=5.0)
        settings = msgspec.structs.replace(settings_for(directory, "gate"), ceilings=ceilings)
        _, after, figures = asyncio.run(readiness_before_and_after(settings))

    assert (after["ready"], after["code"]) == (False, "attack_not_passed")
    assert Exposition(figures).value("sandboxd_attack_rows", outcome="stopped") == 0
