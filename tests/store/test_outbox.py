"""Events about quotas: made once, with the end of a job, and delivered until somebody takes them."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from store_examples import a_job, a_log, in_store, no_log, success

from sandboxd.jobs import Stream, Usage
from sandboxd.metrics import Metrics
from sandboxd.quotas.tenants import Bounds, TenantQuotas
from sandboxd.settings import WebhookSettings
from sandboxd.store.sqlite import SqliteStore
from sandboxd.webhooks import RETRY_SECONDS, Webhooks, signed_headers

NOW = datetime.fromisoformat("2024-02-29T22:30:00Z").timestamp()
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def use(
    store: SqliteStore, cpu_seconds: float, now: float = NOW, *, told: bool = True, **quotas: Any
) -> None:
    """A job of ada's that ends having used so much."""
    job = (await store.submit(a_job(now=now), claim_owner="me")).job
    usage = Usage(cpu_seconds=cpu_seconds, wall_seconds=0.0)
    result = msgspec.structs.replace(success(), usage=usage)
    bounds = Bounds(TenantQuotas(**quotas), told=told)
    await store.finish(job.id, 1, result, no_log(), now, bounds=bounds)


async def events(store: SqliteStore, now: float = NOW) -> list[dict[str, Any]]:
    """The bodies of those that are to be delivered."""
    return [json.loads(event.body) for event in await store.due_events(now, 100)]


@in_store
async def test_who_has_used_most_of_a_quota_is_told_of_once_in_its_window(
    store: SqliteStore,
) -> None:
    await use(store, 79.0, cpu_seconds_per_hour=100.0)
    before = await events(store)
    await use(store, 1.0, cpu_seconds_per_hour=100.0)
    await use(store, 15.0, cpu_seconds_per_hour=100.0)
    (event,) = await events(store)
    await use(store, 90.0, NOW + 3600, cpu_seconds_per_hour=100.0)

    assert before == []
    assert (event["specversion"], event["type"]) == ("1.0", "quota.threshold")
    assert (event["source"], event["subject"]) == ("/v1/tenants/ada", "ada")
    assert event["time"] == "2024-02-29T22:30:00Z"
    assert event["data"] == {
        "tenant": "ada",
        "policy": "cpu_seconds_per_hour",
        "used": 80.0,
        "allowed": 100.0,
        "window_end": "2024-02-29T23:00:00Z",
    }
    assert len(await events(store, NOW + 3600)) == 2


@in_store
async def test_each_quota_is_told_of_by_itself(store: SqliteStore) -> None:
    await use(store, 80.0, cpu_seconds_per_hour=100.0, cpu_seconds_per_month=100.0)

    told = {event["data"]["policy"]: event["data"]["window_end"] for event in await events(store)}
    assert told == {
        "cpu_seconds_per_hour": "2024-02-29T23:00:00Z",
        "cpu_seconds_per_month": "2024-03-01T00:00:00Z",
    }


@in_store
async def test_what_is_stored_is_told_of_once_a_day(store: SqliteStore) -> None:
    bounds = Bounds(TenantQuotas(storage_bytes=1000), told=True)
    used = []
    for at in (NOW, NOW + 60, NOW + 86_400):
        job = (await store.submit(a_job(now=at), claim_owner="me")).job
        log = a_log(Path("/nowhere"), job.id, (Stream.STDOUT, b"x" * 500))
        await store.finish(job.id, 1, success(), log, at, bounds=bounds)
        used.append(await store.stored_bytes("ada"))

    told = [event["data"] for event in await events(store, NOW + 86_400)]
    assert [(each["policy"], each["used"], each["window_end"]) for each in told] == [
        ("storage_bytes", used[0], None),
        ("storage_bytes", used[2], None),
    ]


@in_store
async def test_nothing_is_written_where_nobody_is_told(store: SqliteStore) -> None:
    await use(store, 90.0, told=False, cpu_seconds_per_hour=100.0)
    assert await store.undelivered_events() == 0


@in_store
async def test_what_was_told_is_remembered_longer_than_a_month_and_then_forgotten(
    store: SqliteStore,
) -> None:
    day = 86_400
    await use(store, 90.0, cpu_seconds_per_month=100.0)
    (event,) = await store.due_events(NOW, 100)
    await store.delete_expired(NOW + 63 * day, 10)
    waits_still = await store.undelivered_events()
    await store.note_attempt(event.id, None)
    await store.delete_expired(NOW + 31 * day, 10)
    await use(store, 1.0, cpu_seconds_per_month=100.0)
    told_again = await store.undelivered_events()
    await store.delete_expired(NOW + 63 * day, 10)
    await use(store, 1.0, cpu_seconds_per_month=100.0)

    assert waits_still == 1
    assert told_again == 0
    assert await store.undelivered_events() == 1


class Received(NamedTuple):
    """One request of a receiver's."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """A web server that answers as it is told, and with 204 when it has been told no more."""

    def __init__(self, answers: list[int], url: str) -> None:
        self.answers = answers
        self.url = url
        self.received: list[Received] = []


@contextmanager
def receiver(*answers: int) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            there.received.append(Received(self.path, headers, body))
            self.send_response(there.answers.pop(0) if there.answers else 204)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there = Receiver(list(answers), f"http://127.0.0.1:{server.server_port}/hook")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield there
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def delivering(store: SqliteStore, url: str, *retry_seconds: float) -> Iterator[Metrics]:
    metrics = Metrics({}, lambda: None)
    settings = WebhookSettings(url=url, secret=SECRET)
    task = asyncio.ensure_future(
        Webhooks(store, metrics, settings, retry_seconds=retry_seconds).run()
    )
    try:
        yield metrics
    finally:
        task.cancel()


async def wait_until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not await holds():  # noqa: ASYNC110 what is in the record sends no event
            await asyncio.sleep(0.01)


async def all_settled(store: SqliteStore) -> bool:
    return await store.undelivered_events() == 0


def count(metrics: Metrics, outcome: str) -> float:
    labels = {"outcome": outcome}
    return metrics.registry.get_sample_value("sandboxd_webhook_deliveries_total", labels) or 0.0


async def told_of_its_end(metrics: Metrics) -> bool:
    """Which is counted after it is on the record."""
    return count(metrics, "delivered") + count(metrics, "given_up") > 0


@in_store
async def test_an_event_is_signed_and_comes_again_until_it_is_taken(store: SqliteStore) -> None:
    await use(store, 90.0, cpu_seconds_per_hour=100.0)
    with (
        receiver(500, 302, 404) as there,
        delivering(store, there.url, 0.01, 0.01, 0.01) as metrics,
    ):
        await wait_until(lambda: told_of_its_end(metrics))

    assert len(there.received) == 4
    assert {each.path for each in there.received} == {"/hook"}
    assert len({each.headers["webhook-id"] for each in there.received}) == 1
    assert (count(metrics, "failed"), count(metrics, "delivered")) == (3, 1)
    last = there.received[-1]
    assert last.headers["content-type"] == "application/cloudevents+json"
    assert json.loads(last.body)["id"] == last.headers["webhook-id"]
    signed = f"{last.headers['webhook-id']}.{last.headers['webhook-timestamp']}.".encode()
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    digest = hmac.new(key, signed + last.body, hashlib.sha256).digest()
    assert last.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


@in_store
async def test_an_event_that_nobody_takes_is_given_up(store: SqliteStore) -> None:
    await use(store, 90.0, cpu_seconds_per_hour=100.0)
    with receiver(*[500] * 9) as there, delivering(store, there.url, 0.01, 0.01) as metrics:
        await wait_until(lambda: told_of_its_end(metrics))
        attempts = len(there.received)

    assert attempts == 3
    assert (count(metrics, "failed"), count(metrics, "given_up")) == (2, 1)


@in_store
async def test_what_one_service_could_not_deliver_the_next_one_does(store: SqliteStore) -> None:
    await use(store, 90.0, cpu_seconds_per_hour=100.0)
    with receiver() as gone:
        pass
    with delivering(store, gone.url, 0.01, 3600.0) as metrics:

        async def failed_twice() -> bool:
            return count(metrics, "failed") == 2

        await wait_until(failed_twice)
    due_at = await store.next_event_due()
    (event,) = await store.due_events(NOW + 10**9, 1)
    await store.note_attempt(event.id, NOW)
    with receiver() as there, delivering(store, there.url):
        await wait_until(lambda: all_settled(store))

    assert due_at is not None
    assert event.attempts == 2
    assert len(there.received) == 1


@in_store
async def test_an_answer_that_does_not_come_is_a_failure(store: SqliteStore) -> None:
    await use(store, 90.0, cpu_seconds_per_hour=100.0)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    with delivering(store, url) as metrics:
        await wait_until(lambda: told_of_its_end(metrics))
    server.close()

    assert count(metrics, "given_up") == 1


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of https://github.com/standard-webhooks/standard-webhooks (spec and its libraries)."""
    key = WebhookSettings(secret=SECRET).signing_key
    body = b'{"test": 2432232314}'
    headers = signed_headers(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_last_attempt_is_three_days_after_the_first() -> None:
    assert len(RETRY_SECONDS) == 9
    assert 3 * 86_400 < sum(RETRY_SECONDS) < 4 * 86_400
