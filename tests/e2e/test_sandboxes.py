"""Sandboxes that live until they are told to end, on the real service."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx2
import msgspec
import psutil
import pytest
from running_service import RunningService, running_service
from sandbox_client import Box, events, service_of_two_tenants
from waiting import TIME_FACTOR, wait_for

from sandboxd.api.sandbox_schemas import SandboxLimitsRequest
from sandboxd.quotas.limits import LEAST

MIB = 2**20
SPIN = "while :; do :; done"


@pytest.fixture
def own_service(prepared_host: None) -> Iterator[RunningService]:
    """A service that the test may kill."""
    flags = ("--no-auth", "--slots", "2")
    with running_service(flags=flags, server_shutdown_grace_seconds=1) as service:
        yield service


# What stays, and what does not


def test_files_processes_and_variables_stay_from_one_command_to_the_next(
    http: httpx2.Client,
) -> None:
    with Box(http, env={"COLOUR": "green", "SIZE": "1"}, workdir="/work/here") as box:
        box.shell("echo hello > file; sleep 1000 & echo $! > /tmp/pid")

        assert box.shell("pwd; cat file; kill -0 $(cat /tmp/pid) && echo runs") == (
            "/work/here\nhello\nruns\n"
        )
        assert box.shell("echo $COLOUR $SIZE", env={"SIZE": "2"}) == "green 2\n"
        assert box.shell("pwd", workdir="/tmp") == "/tmp\n"


def test_the_least_of_open_files_is_enough_for_command_after_command(http: httpx2.Client) -> None:
    with Box(http, limits={"open_files": LEAST.open_files}) as box:
        assert [box.shell("echo $0; ulimit -n") for _ in range(3)] == [
            f"sh\n{LEAST.open_files}\n"
        ] * 3


def test_what_a_command_leaves_running_does_not_hold_its_answer_and_goes_on(box: Box) -> None:
    began = time.monotonic()
    out = box.shell("(while :; do echo more; sleep 0.01; done) & echo $! > /tmp/pid; echo done")

    assert "done\n" in out
    assert time.monotonic() - began < 10 * TIME_FACTOR
    box.shell("sleep 0.1; kill -0 $(cat /tmp/pid)")


def test_a_hundred_commands_in_a_row_leave_nothing(box: Box, real_service: RunningService) -> None:
    service = psutil.Process(real_service.process.pid)
    box.run("true")
    fds, threads = service.num_fds(), service.num_threads()

    for number in range(100):
        assert box.run("sh", "-c", f"echo {number}; exit {number}")["exit"]["code"] == number

    assert box.shell("set -- /proc/[0-9]*; echo $#") == "2\n"  # init and this shell
    wait_for(lambda: service.num_fds() <= fds + 1, "no descriptor is left")
    assert service.num_threads() <= threads + 8
    assert box.view()["execs"] == 102


def test_commands_run_beside_each_other_and_each_has_its_own_output(box: Box) -> None:
    with ThreadPoolExecutor(8) as pool:
        scripts = [f"echo a{n}; sleep 0.3; echo b{n}" for n in range(8)]
        outputs = list(pool.map(box.shell, scripts))

    assert outputs == [f"a{n}\nb{n}\n" for n in range(8)]


def test_a_sandbox_takes_only_so_many_commands_at_once(prepared_host: None) -> None:
    with (
        running_service(sandboxes_most_execs=2) as service,
        service.http() as http,
        Box(http) as box,
    ):
        for _ in range(2):
            box.begin("sleep", "1000")

        refused = box.post("exec", {"command": ["true"]})

        assert (refused.status_code, refused.json()["code"]) == (409, "too_many_execs")


# Commands


def test_a_command_has_its_own_input_end_and_figures(box: Box) -> None:
    box.shell("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")
    ran = box.run("sh", "-c", "cat; echo wrong >&2; exit 7", stdin="input")

    assert (ran["state"], ran["reason"], ran["exit"]["code"]) == ("failed", "exited", 7)
    assert (ran["stdout"], ran["stderr"]) == ("input", "wrong\n")
    assert ran["usage"]["cpu_seconds"] < 0.1 * TIME_FACTOR
    assert box.view()["usage"]["cpu_seconds"] > ran["usage"]["cpu_seconds"]


def test_a_command_that_cannot_run_says_so_and_the_sandbox_goes_on(box: Box) -> None:
    assert box.run("no-such-program")["reason"] == "command_not_found"
    assert box.run("true", workdir="/proc/self/fd/3")["reason"] == "workdir_unusable"
    assert box.shell("echo there") == "there\n"


def until_no_sleep_is_left(box: Box) -> None:
    """What was killed with the shell may be on its way out when the shell's end is told."""
    wait_for(lambda: box.shell("ps -C sleep -o pid= | wc -l") == "0\n", "it is gone")


def test_a_command_that_takes_too_long_is_killed_and_the_sandbox_goes_on(box: Box) -> None:
    limits = {"wall_seconds": 2 * TIME_FACTOR}
    ran = box.run("sh", "-c", "echo a; sleep 1000; echo b", limits=limits)

    assert (ran["state"], ran["reason"], ran["stdout"]) == ("timed_out", "wall_seconds", "a\n")
    assert ran["exit"]["stopped_by"] == "wall_seconds"
    until_no_sleep_is_left(box)


def test_a_command_that_writes_too_much_is_killed_and_the_sandbox_goes_on(box: Box) -> None:
    ran = box.run("yes", limits={"output_bytes": 1000})

    assert (ran["state"], ran["reason"]) == ("output_limit", "output_bytes")
    assert ran["streams"]["stdout"] == {"size_bytes": 1000, "inline_bytes": 1000, "truncated": True}
    assert box.shell("echo there") == "there\n"


def test_what_is_left_running_cannot_keep_the_service_busy(
    box: Box, real_service: RunningService
) -> None:
    """It writes on after its command's end: so much is thrown away, then nobody reads it."""
    box.shell("(sleep 0.1; exec yes) & echo $! > /tmp/pid", limits={"output_bytes": 64 * MIB})

    gone = "while kill -0 $(cat /tmp/pid) 2>&-; do sleep 0.01; done; echo gone"
    assert box.shell(gone) == "gone\n"


def test_a_command_goes_on_where_the_client_does_not_wait(box: Box) -> None:
    begun = box.begin("sh", "-c", f"echo a; sleep {0.3 * TIME_FACTOR}; echo b")

    assert begun["state"] in ("starting", "running")
    ended = box.end_of(begun)
    assert (ended["state"], ended["stdout"]) == ("succeeded", "a\nb\n")
    listed = box.http.get(f"{box.path}/execs").json()["data"]
    assert [each["id"] for each in listed] == [begun["id"]]


def test_output_comes_as_it_is_written(box: Box) -> None:
    body = {"command": ["sh", "-c", "echo a; read line < /tmp/fifo; echo $line"]}
    box.run("mkfifo", "/tmp/fifo")
    headers = {"accept": "text/event-stream"}
    with box.http.stream("POST", f"{box.path}/exec", json=body, headers=headers) as answer:
        received = ""
        for piece in answer.iter_text():
            received += piece
            if "a\\n" in received and "b\\n" not in received:
                box.shell("echo b > /tmp/fifo")

    found = events(received)
    assert [name for name, _ in found] == ["log", "log", "end"]
    assert [data.get("data") for _, data in found[:2]] == ["a\n", "b\n"]
    assert found[-1][1]["state"] == "succeeded"
    location = answer.headers["location"]
    again = box.http.get(location, headers={**headers, "last-event-id": "2"})
    assert [data.get("data") for _, data in events(again.text)] == ["b\n", None]
    assert box.http.get(location, headers={**headers, "last-event-id": "4-end"}).status_code == 204


def test_a_signal_reaches_a_command_and_its_children(box: Box) -> None:
    begun = box.begin(
        "sh", "-c", "trap 'echo got; exit 9' USR1; echo ready; while :; do sleep 0.01; done"
    )
    wait_for(lambda: box.http.get(f"{box.path}/execs/{begun['id']}").json()["stdout"], "it runs")

    assert box.post(f"execs/{begun['id']}/signal", {"signal": "SIGUSR1"}).status_code == 202

    ended = box.end_of(begun)
    assert "exit" in ended, ended
    assert (ended["exit"]["code"], ended["stdout"]) == (9, "ready\ngot\n")
    wrong = box.post(f"execs/{begun['id']}/signal", {"signal": "SIGWHAT"})
    assert wrong.json()["errors"][0]["pointer"] == "/signal"


def test_a_signal_is_not_lost_where_the_command_is_not_known_to_run_yet(box: Box) -> None:
    begun = [box.begin("sleep", "1000") for _ in range(10)]
    # Without waiting for its start: the command may run, write and be heard of before init tells of it.
    for each in begun:
        assert box.post(f"execs/{each['id']}/signal", {"signal": "SIGUSR1"}).status_code == 202
    fresh = box.begin("sleep", "1000")
    box.post(f"execs/{fresh['id']}/signal", {"signal": "SIGUSR1"})

    for each in (*begun, fresh):
        assert box.end_of(each)["exit"]["signal"] == "SIGUSR1"


def test_a_command_can_be_killed(box: Box) -> None:
    begun = box.begin("sh", "-c", "trap '' TERM; sleep 1000; sleep 1000")

    assert box.http.delete(f"{box.path}/execs/{begun['id']}").status_code == 202

    ended = box.end_of(begun)
    assert (ended["state"], ended["reason"]) == ("cancelled", "cancelled_by_client")
    until_no_sleep_is_left(box)


def test_a_client_that_hangs_up_stops_its_command(box: Box, real_service: RunningService) -> None:
    command = {"command": ["sleep", "1000"]}
    with real_service.http() as other, pytest.raises(httpx2.ReadTimeout):
        other.post(f"{box.path}/exec", json=command, timeout=0.3 * TIME_FACTOR)

    def reasons() -> Any:
        listed = box.http.get(f"{box.path}/execs").json()["data"]
        return [each["reason"] for each in listed] == ["client_gone"]

    wait_for(reasons, "it is stopped")


# Times, pauses, limits


def test_a_sandbox_that_nobody_uses_ends(http: httpx2.Client) -> None:
    box = Box(http, idle_seconds=2 * TIME_FACTOR)
    box.run("sleep", str(3 * TIME_FACTOR))  # in use for longer than that

    ended = wait_for(lambda: (v := box.view())["state"] == "ended" and v, "it ends")

    assert ended["reason"] == "idle_seconds"
    assert box.post("exec", {"command": ["true"]}).json()["code"] == "sandbox_ended"
    assert http.delete(box.path).status_code == 204
    assert http.get(box.path).status_code == 404


def test_a_sandbox_ends_when_its_time_is_over_and_takes_its_commands_along(
    http: httpx2.Client,
) -> None:
    box = Box(http, ttl_seconds=3 * TIME_FACTOR)
    ran = box.run("sleep", "1000")

    assert (ran["state"], ran["reason"]) == ("cancelled", "sandbox_ended")
    assert wait_for(lambda: box.view()["reason"] == "ttl_seconds", "it ends")
    http.delete(box.path)


def test_deleting_a_sandbox_ends_what_runs_in_it(http: httpx2.Client) -> None:
    box = Box(http)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(box.run, "sleep", "1000")
        wait_for(lambda: box.http.get(f"{box.path}/execs").json()["data"], "it runs")
        ended = http.delete(box.path)

        assert ended.json()["reason"] == "deleted"
        assert running.result(30 * TIME_FACTOR)["reason"] == "sandbox_ended"


def test_a_paused_sandbox_uses_no_processor_and_goes_on_when_it_is_resumed(box: Box) -> None:
    begun = box.begin("sh", "-c", SPIN)
    wait_for(lambda: box.view()["usage"]["cpu_seconds"] > 0.05, "it spins")

    paused = box.post("pause")
    assert (paused.status_code, paused.json()["state"]) == (200, "paused"), paused.text
    assert box.post("pause").status_code == 200
    before = box.view()["usage"]["cpu_seconds"]
    assert box.post("exec", {"command": ["true"]}).json()["code"] == "sandbox_paused"
    time.sleep(0.3)  # what must not happen sends no event
    assert box.view()["usage"]["cpu_seconds"] == before

    assert box.post("resume").json()["state"] == "running"
    wait_for(lambda: box.view()["usage"]["cpu_seconds"] > before + 0.05, "it goes on")
    box.http.delete(f"{box.path}/execs/{begun['id']}")


@pytest.mark.attack(51)
def test_a_paused_sandbox_can_end(http: httpx2.Client) -> None:
    for wish, reason in (({}, "deleted"), ({"ttl_seconds": 4 * TIME_FACTOR}, "ttl_seconds")):
        box = Box(http, **wish)
        box.begin("sleep", "1000")
        assert box.post("pause").status_code == 200
        if reason == "deleted":
            http.delete(box.path)

        assert wait_for(lambda box=box, reason=reason: box.view()["reason"] == reason, "it ends")
        http.delete(box.path)


def test_every_limit_that_can_be_asked_for_is_shown(box: Box) -> None:
    asked = {field.encode_name for field in msgspec.structs.fields(SandboxLimitsRequest)}

    limits = box.view()["limits"]

    assert set(limits) == asked
    assert (limits["swap"], limits["io_bytes_per_second"]) == (0, 0)


def test_other_limits_hold_from_the_moment_they_are_set(http: httpx2.Client) -> None:
    take = "import sys; b = bytearray(60 * 2**20); print(len(b))"
    with Box(http, limits={"memory": "32Mi"}) as box:
        assert box.run("python3", "-c", take)["state"] != "succeeded"
    with Box(http, limits={"memory": "32Mi"}) as box:
        changed = http.patch(
            box.path, json={"limits": {"memory": "128Mi", "pids": 5}, "ttl_seconds": 1000}
        )

        assert changed.json()["limits"]["memory"] == 128 * MIB
        assert changed.json()["ttl_seconds"] == 1000
        assert box.run("python3", "-c", take)["state"] == "succeeded"
        assert "fork" in box.run("sh", "-c", "for i in 1 2 3 4 5 6; do sleep 1000 & done")["stderr"]
        wrong = http.patch(box.path, json={"limits": {"memory": "1000Gi", "wall": 3}})
        assert [fault["pointer"] for fault in wrong.json()["errors"]] == [
            "/limits/wall",
            "/limits/memory",
        ]


def test_a_command_that_takes_too_much_memory_ends_as_that(http: httpx2.Client) -> None:
    box = Box(http, limits={"memory": "32Mi"})
    ran = box.run("python3", "-c", "b = bytearray(100 * 2**20)")

    assert (ran["state"], ran["reason"]) == ("out_of_memory", "memory")
    assert ran["exit"]["oom_killed"] is True
    assert box.shell("echo there") == "there\n"
    http.patch(box.path, json={"limits": {"memory": "128Mi"}})
    ended = box.run("sh", "-c", "kill -9 $$")
    assert (ended["reason"], ended["exit"]["oom_killed"]) == ("signalled", False)
    http.delete(box.path)


# Who may


def test_there_are_only_so_many_sandboxes_and_jobs_keep_their_slots(
    own_service: RunningService,
) -> None:
    with own_service.http() as http, own_service.client() as client, Box(http):
        refused = http.post("/v1/sandboxes", json={})
        assert (refused.status_code, refused.json()["code"]) == (503, "too_many_sandboxes")
        assert refused.headers["retry-after"] == "5"
        assert client.system()["capacity"]["held"] == 1
        jobs = [client.submit(["sleep", "0.3"]) for _ in range(3)]
        ended = [client.wait(job.id) for job in jobs]
        assert [job.state for job in ended] == ["succeeded"] * 3
        # One after the other, in the slot that is left.
        assert all(one.finished_at <= next_.started_at for one, next_ in pairwise(ended))


def test_another_tenant_sees_nothing_of_a_sandbox(prepared_host: None) -> None:
    with (
        service_of_two_tenants() as (service, keys),
        service.http(keys[0]) as mine,
        service.http(keys[1]) as other,
        service.http(keys[2]) as reading,
        Box(mine) as box,
    ):
        begun = box.begin("sleep", "1000")
        paths = (box.path, f"{box.path}/execs", f"{box.path}/execs/{begun['id']}")
        assert [other.get(path).status_code for path in paths] == [404] * 3
        assert other.post(f"{box.path}/exec", json={"command": ["id"]}).status_code == 404
        assert other.post(f"{box.path}/pause").status_code == 404
        assert other.delete(box.path).status_code == 404
        assert other.get("/v1/sandboxes").json()["data"] == []
        assert reading.get(box.path).status_code == 200
        assert reading.post(f"{box.path}/exec", json={"command": ["id"]}).status_code == 403
        assert reading.delete(box.path).status_code == 403
        assert box.view()["state"] == "running"


# Ends that nobody asked for


def test_a_killed_init_ends_its_sandbox_and_no_other(
    prepared_host: None,
) -> None:
    with running_service(flags=("--no-auth", "--slots", "4")) as service, service.http() as http:
        box, other = Box(http), Box(http)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(box.run, "sleep", "1234")
            process = wait_for(
                lambda: [p for p in service.processes() if p.cmdline()[-1:] == ["1234"]], "it runs"
            )[0]
            os.kill(process.ppid(), signal.SIGKILL)

            assert running.result(30 * TIME_FACTOR)["state"] == "error"
        assert wait_for(lambda: box.view()["reason"] == "init_died", "it is noticed")
        assert other.shell("echo there") == "there\n"
        http.delete(other.path)


def test_sandboxes_end_with_a_service_that_stops(own_service: RunningService) -> None:
    with own_service.http() as http:
        box = Box(http)
        box.begin("sleep", "1000")
        assert box.post("pause").status_code == 200
        own_service.stop()
        own_service.start()

        assert (box.view()["state"], box.view()["reason"]) == ("ended", "shutdown")


@pytest.mark.attack(57)
def test_sandboxes_do_not_outlive_a_service_that_was_killed(own_service: RunningService) -> None:
    with own_service.http() as http:
        box = Box(http)
        box.begin("sleep", "1000")
        own_service.kill()
        own_service.start()

        view = box.view()
        assert (view["state"], view["reason"]) == ("ended", "service_lost")
        assert view["ended_at"] is not None
        assert box.post("exec", {"command": ["true"]}).json()["code"] == "sandbox_ended"


def test_lists_go_on_page_by_page(http: httpx2.Client) -> None:
    made = []
    for _ in range(3):
        with Box(http, labels={"of": "pages"}) as box:
            made.append(box.id)
    first = http.get("/v1/sandboxes?limit=2&state=ended").json()
    second = http.get(f"/v1/sandboxes?limit=2&state=ended&cursor={first['next_cursor']}").json()

    found = [each["id"] for each in first["data"] + second["data"]]
    assert found[:3] == made[::-1]
    assert http.get("/v1/sandboxes?state=what").status_code == 400
