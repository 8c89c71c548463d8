"""The client's conversations, told and answered by hand: what is asked, what is asked again, what it means."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from sandboxd.client import sandbox_protocol
from sandboxd.client.protocol import (
    ATTEMPTS,
    Answer,
    Conversation,
    LogReader,
    Lost,
    Pause,
    Request,
    cancel,
    create_key,
    delete,
    get,
    list_jobs,
    submit,
    wait,
)
from sandboxd.client.types import (
    ClientError,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    Job,
    KeyRefused,
    NotFound,
    NotTheService,
    RequestRefused,
    ServiceFault,
    Unavailable,
    WaitTimedOut,
)
from sandboxd.settings import ImagesSettings

JOB: dict[str, Any] = {
    "id": "job_1",
    "state": "running",
    "reason": "started",
    "image": "host",
    "command": ["true"],
    "created_at": "2026-01-31T12:00:00.000Z",
    "queued_at": "2026-01-31T12:00:00.000Z",
    "a_field_of_the_future": True,
}
RUNNING = Answer(200, {}, json.dumps(JOB).encode())
ENDED = Answer(200, {}, json.dumps(JOB | {"state": "succeeded", "reason": "exited"}).encode())
BUSY = Answer(503, {"retry-after": "2"}, b"")


class Talk:
    """A conversation and what was said in it."""

    def __init__(self, conversation: Conversation[Any], answers: list[Answer | Lost]) -> None:
        self.requests: list[Request] = []
        self.pauses: list[float] = []
        self.result: Any = None
        heard: Answer | Lost | None = None
        try:
            while True:
                step = conversation.send(heard)
                heard = None
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                else:
                    self.requests.append(step)
                    heard = answers.pop(0)
        except StopIteration as end:
            self.result = end.value


def problem(status: int, **members: Any) -> Answer:
    return Answer(status, {}, json.dumps({"status": status} | members).encode())


def body_of(request: Request) -> Any:
    return json.loads(request.body or b"null")


def test_a_job_is_submitted_with_everything_that_was_asked_for() -> None:
    talk = Talk(submit(["sh", "-c", "id"], limits={"memory": "1Mi"}, env={"A": "b"}), [RUNNING])

    (request,) = talk.requests
    assert (request.method, request.path) == ("POST", "/v1/jobs")
    assert body_of(request) == {
        "image": "host",
        "command": ["sh", "-c", "id"],
        "limits": {"memory": "1Mi"},
        "env": {"A": "b"},
    }
    assert isinstance(talk.result, Job)
    assert talk.result.id == "job_1"


@pytest.mark.parametrize(
    ("stdin", "sent"), [("text", "text"), (b"text", "text"), (b"\xff", {"base64": "/w=="})]
)
def test_input_is_sent_as_text_where_it_is_text_and_else_unharmed(
    stdin: str | bytes, sent: object
) -> None:
    talk = Talk(submit(["cat"], stdin=stdin), [RUNNING])

    assert body_of(talk.requests[0])["stdin"] == sent


def test_a_submission_that_is_repeated_has_the_same_idempotency_key() -> None:
    talk = Talk(submit(["true"]), [Lost("reset"), BUSY, RUNNING])

    first, second, third = talk.requests
    assert first.headers["idempotency-key"]
    assert first == second == third
    assert talk.pauses == [0.1, 2.0]


def test_two_submissions_have_different_idempotency_keys() -> None:
    keys = [Talk(submit(["true"]), [RUNNING]).requests[0].headers["idempotency-key"] for _ in "ab"]

    assert keys[0] != keys[1]


def test_repeating_has_an_end_when_the_connection_stays_broken() -> None:
    answers: list[Answer | Lost] = [Lost(f"reset {number}") for number in range(ATTEMPTS)]

    with pytest.raises(ConnectionFailed, match=f"reset {ATTEMPTS - 1}"):
        Talk(get("job_1"), answers)
    assert not answers


def test_repeating_has_an_end_when_the_service_stays_busy() -> None:
    answers: list[Answer | Lost] = [BUSY] * ATTEMPTS

    with pytest.raises(Unavailable):
        Talk(get("job_1"), answers)
    assert not answers


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, {}, b""),
        Answer(503, {"retry-after": "3600"}, b""),
        Answer(503, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, b""),
        Answer(500, {"retry-after": "1"}, b""),
        Answer(404, {"retry-after": "1"}, b""),
    ],
)
def test_what_would_not_help_soon_is_not_asked_again(answer: Answer) -> None:
    with pytest.raises(RequestRefused):
        Talk(get("job_1"), [answer])


@pytest.mark.parametrize("ask", [delete, create_key])
@pytest.mark.parametrize("answer", [Lost("reset"), BUSY])
def test_what_is_not_safe_to_repeat_is_never_repeated(
    ask: Callable[[str], Any], answer: Answer | Lost
) -> None:
    with pytest.raises(ClientError):
        Talk(ask("id_1"), [answer])


def test_cancelling_is_repeated_because_twice_is_harmless() -> None:
    talk = Talk(cancel("job_1", 2.0, "why"), [Lost("reset"), RUNNING])

    assert [request.path for request in talk.requests] == ["/v1/jobs/job_1/cancel"] * 2
    assert body_of(talk.requests[0]) == {"grace_seconds": 2.0, "reason": "why"}


def test_waiting_asks_again_until_the_job_has_ended() -> None:
    talk = Talk(wait("job_1", None), [RUNNING, RUNNING, ENDED])

    assert [request.query for request in talk.requests] == [[("wait", "30.000")]] * 3
    assert talk.result.is_terminal


def test_a_service_that_does_not_hold_requests_is_not_asked_without_a_pause() -> None:
    talk = Talk(wait("job_1", None), [RUNNING, ENDED])

    assert talk.pauses == [0.2]


def test_waiting_ends_with_the_job_as_it_is_when_patience_does() -> None:
    with pytest.raises(WaitTimedOut) as caught:
        Talk(wait("job_1", 0.0), [RUNNING])

    assert caught.value.job.id == "job_1"


def test_a_wait_never_asks_for_more_time_than_there_is() -> None:
    talk = Talk(wait("job_1", 5.0), [ENDED])

    ((_, seconds),) = talk.requests[0].query
    assert 1.0 < float(seconds) <= 5.0


def test_a_list_asks_for_what_was_given_and_nothing_else() -> None:
    page = Answer(
        200, {}, json.dumps({"data": [JOB], "next_cursor": "c", "has_more": True}).encode()
    )

    talk = Talk(list_jobs(states=["running"], labels={"a": "b"}, limit=3, cursor="x"), [page])

    assert talk.requests[0].query == [
        ("state", "running"), ("label.a", "b"), ("limit", "3"), ("cursor", "x")
    ]  # fmt: skip
    assert talk.result.next_cursor == "c"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, KeyRefused),
        (403, KeyRefused),
        (404, NotFound),
        (409, Conflict),
        (413, InvalidRequest),
        (422, InvalidRequest),
        (429, Unavailable),
        (500, ServiceFault),
        (502, ServiceFault),
        (503, Unavailable),
    ],
)
def test_each_status_has_its_exception(status: int, kind: type[RequestRefused]) -> None:
    with pytest.raises(kind) as caught:
        Talk(get("job_1"), [problem(status, code="some_code", request_id="req-12345678")])

    assert (caught.value.code, caught.value.request_id) == ("some_code", "req-12345678")


def test_a_refusal_says_every_fault() -> None:
    faults = [{"pointer": "/limits/cpus", "detail": "too many"}, {"parameter": "x", "detail": "no"}]

    with pytest.raises(InvalidRequest) as caught:
        Talk(get("job_1"), [problem(422, detail="Two faults.", errors=faults)])

    assert str(caught.value) == "Two faults.\n  /limits/cpus: too many\n  x: no"
    assert [fault.pointer for fault in caught.value.faults] == ["/limits/cpus", None]


def test_a_refusal_that_is_no_problem_document_is_shown_as_it_is() -> None:
    with pytest.raises(ServiceFault, match="<html>Bad Gateway"):
        Talk(get("job_1"), [Answer(502, {}, b"<html>Bad Gateway")])


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"id": 1}'])
def test_an_answer_that_is_none_of_this_api_is_said_to_be_so(body: bytes) -> None:
    with pytest.raises(NotTheService):
        Talk(get("job_1"), [Answer(200, {}, body)])


@pytest.mark.parametrize("job_id", ["../keys", "", "job_1?x", "job 1", "jöb"])
@pytest.mark.parametrize("ask", [get, delete])
def test_an_id_cannot_lead_to_another_resource(ask: Callable[[str], Any], job_id: str) -> None:
    with pytest.raises(ClientError):
        Talk(ask(job_id), [])


def record(text: str) -> str:
    return json.dumps(
        {"time": "2026-01-31T12:00:00.000Z", "stream": "stdout", "offset": 0, "data": text}
    )


def test_a_log_is_taken_up_after_the_last_piece_that_was_read() -> None:
    reader = LogReader("job_1", None, follow=True, after_bytes=0)
    assert "last-event-id" not in reader.request().headers

    piece = reader.read("log", record("abc"), "3")
    pause = reader.closed()

    assert piece is not None
    assert piece.data == b"abc"
    assert pause > 0
    assert reader.request().headers["last-event-id"] == "3"


def test_a_log_ends_with_its_end_event_and_with_204() -> None:
    by_event = LogReader("job_1", None, follow=True, after_bytes=0)
    by_event.read("end", "{}", "3-end")
    by_status = LogReader("job_1", None, follow=True, after_bytes=0)
    by_status.accept(204, b"", {})

    assert by_event.ended
    assert by_status.ended


def test_a_log_that_is_not_followed_ends_where_it_is() -> None:
    reader = LogReader("job_1", "stdout", follow=False, after_bytes=0)

    reader.closed()

    assert reader.ended
    assert reader.request().query == [("follow", "false"), ("stream", "stdout")]


def test_other_events_bring_no_output() -> None:
    reader = LogReader("job_1", None, follow=True, after_bytes=0)

    assert reader.read("attempt", '{"attempt": 2}', "0") is None
    assert not reader.ended


def test_a_log_that_breaks_without_progress_is_given_up() -> None:
    reader = LogReader("job_1", None, follow=True, after_bytes=0)
    for _ in range(ATTEMPTS - 1):
        reader.lost("reset")

    with pytest.raises(ConnectionFailed):
        reader.lost("reset")


def test_a_log_that_makes_progress_may_break_any_number_of_times() -> None:
    reader = LogReader("job_1", None, follow=True, after_bytes=0)

    for number in range(3 * ATTEMPTS):
        reader.read("log", record("x"), str(number))
        reader.lost("reset")


def test_a_sandbox_is_waited_for_as_long_as_its_image_is_pulled() -> None:
    request = next(sandbox_protocol.create(image="python:3.13-slim"))

    assert isinstance(request, Request)
    assert request.patience_seconds > ImagesSettings().pull_seconds
