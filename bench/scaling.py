"""Rows of how it goes with much: 10 to 10,000 jobs that wait, 1 to 200 that run, and 500 live sandboxes. They take long."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection

from commands import LIFE_SECONDS, over, warm
from footprint import MIB, resident_bytes, taken_bytes, wait_until_parked
from load import post, rate
from rates import ACCEPT_CONNECTIONS, BODY, accepted
from rows import Block, Ground, Opened
from service import JOB, TRUE, MeasuredService, WentWrongError, ask, job_done, running_service

SLOTS = 4
MORE = 1000
"""So many more may wait than are waited for."""
LAST = json.dumps(JOB | {"priority": -100})
"""Its turn comes after all the others'."""
PARKED = 4
"""Of the usual shape, as settings come."""
SMALL = {"memory": "16Mi"}
"""So that as many as are to run fit into the host's memory."""


def queued(depth: int) -> Callable[[Ground], Opened]:
    """Jobs a second, from the moment that the slots become free, until all of `depth` that waited are done."""

    @contextlib.contextmanager
    def opened(ground: Ground) -> Iterator[Block]:
        with (
            running_service(
                ground.data_dir, slots=SLOTS, settings={"scheduler_max_queued": 2 * depth + SLOTS}
            ) as service,
            contextlib.closing(service.connection()) as connection,
        ):

            def one() -> float:
                connection.close()
                held = fill(service, connection, depth)
                connection.close()  # The service does so with one that was idle meanwhile.
                began = time.perf_counter()
                for job_id in held:
                    cancel(connection, job_id)
                last = ask(connection, "POST", "/v1/jobs", LAST, wait=False)
                while last["finished_at"] is None:
                    last = ask(connection, "GET", f"/v1/jobs/{last['id']}?wait=60", "", wait=False)
                if last["state"] != "succeeded":
                    raise WentWrongError(f"the last job did not succeed: {json.dumps(last)}")
                return depth / (time.perf_counter() - began)

            yield lambda runs: [one() for _ in range(runs)]

    return opened


@contextlib.contextmanager
def waiting(ground: Ground, depth: int) -> Iterator[MeasuredService]:
    """A service in which so many jobs wait."""
    settings = {"scheduler_max_queued": 2 * depth + MORE}
    with (
        running_service(ground.data_dir, slots=SLOTS, settings=settings) as service,
        contextlib.closing(service.connection()) as connection,
    ):
        fill(service, connection, depth)
        yield service


def accepting(depth: int) -> Callable[[Ground], Opened]:
    """Milliseconds until a job is accepted, durable, beside `depth` that wait."""

    @contextlib.contextmanager
    def opened(ground: Ground) -> Iterator[Block]:
        with (
            waiting(ground, depth) as service,
            contextlib.closing(service.connection()) as connection,
        ):
            job = json.dumps(JOB)
            yield over(connection, lambda: ask(connection, "POST", "/v1/jobs", job, wait=False))

    return opened


def remembering(depth: int) -> Callable[[Ground], Opened]:
    """Resident MiB of the service's own process with `depth` jobs that wait."""

    @contextlib.contextmanager
    def opened(ground: Ground) -> Iterator[Block]:
        with waiting(ground, depth) as service:
            yield lambda _: [resident_bytes(service.process.pid) / MIB]

    return opened


def running(count: int) -> Callable[[Ground], Opened]:
    """Milliseconds of a small job beside `count` that run and do nothing."""

    @contextlib.contextmanager
    def opened(ground: Ground) -> Iterator[Block]:
        with (
            running_service(
                ground.data_dir, slots=count + SLOTS, settings={"server_shutdown_grace_seconds": 0}
            ) as service,
            contextlib.closing(service.connection()) as connection,
        ):
            for _ in range(count):
                sleeping(connection)
            while True:
                busy = ask(connection, "GET", "/v1/system", "")["capacity"]["busy"]
                if busy == count:
                    break
                time.sleep(0.05)
            request = json.dumps(JOB | {"limits": SMALL})
            yield warm(connection, lambda: job_done(connection, request))

    return opened


def asleep(count: int) -> Callable[[Ground], Opened]:
    """MiB that the host has less for each of `count` live sandboxes that do nothing. Then each of them has to do something."""

    @contextlib.contextmanager
    def opened(ground: Ground) -> Iterator[Block]:
        settings = {"sandboxes_most": count, "server_shutdown_grace_seconds": 0}

        def one() -> float:
            with (
                running_service(ground.data_dir, slots=2 * count, settings=settings) as service,
                contextlib.closing(service.connection()) as connection,
            ):
                wait_until_parked(service, PARKED)
                before = taken_bytes()
                made = [live(connection) for _ in range(count)]
                wait_until_parked(service, PARKED + count)
                taken = taken_bytes() - before
                for path in made:
                    done = ask(connection, "POST", f"{path}/exec", json.dumps({"command": [TRUE]}))
                    if done.get("state") != "succeeded":
                        raise WentWrongError(f"a sandbox does not answer: {json.dumps(done)}")
                return taken / count / MIB

        yield lambda runs: [one() for _ in range(runs)]

    return opened


def live(connection: HTTPConnection) -> str:
    """A live sandbox; its path."""
    life = {"ttl_seconds": LIFE_SECONDS, "idle_seconds": LIFE_SECONDS, "limits": SMALL}
    made = ask(connection, "POST", "/v1/sandboxes", json.dumps(life))
    if made.get("state") != "running":
        raise WentWrongError(f"no sandbox was made: {json.dumps(made)}")
    return f"/v1/sandboxes/{made['id']}"


def fill(service: MeasuredService, connection: HTTPConnection, depth: int) -> list[str]:
    """Take every slot, and let `depth` jobs wait for them. The ids of those that have the slots."""
    held = [sleeping(connection) for _ in range(SLOTS)]
    connections = min(depth, ACCEPT_CONNECTIONS)
    rate(service.port, post("/v1/jobs", BODY), connections=connections, count=depth, good=accepted)
    return held


def sleeping(connection: HTTPConnection) -> str:
    job = {"image": "host", "command": ["sleep", "3600"], "limits": SMALL | {"wall_seconds": 3600}}
    return str(ask(connection, "POST", "/v1/jobs", json.dumps(job), wait=False)["id"])


def cancel(connection: HTTPConnection, job_id: str) -> None:
    ask(connection, "POST", f"/v1/jobs/{job_id}/cancel", '{"grace_seconds": 0}', wait=False)
