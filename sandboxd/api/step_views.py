"""The steps of a job as answers show them: what they run, and how that ended as far as it has."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET

from sandboxd.api.log_reader import ReadableLog
from sandboxd.api.output import INLINE_BYTES, inline
from sandboxd.api.query import rfc3339
from sandboxd.api.schemas import DifferenceView, RunEventView, RunView, StepView, StreamsView
from sandboxd.api.views import error_view, exit_view, usage_view
from sandboxd.errors import NotFound
from sandboxd.jobs import Difference, RunResult, Span, Stream
from sandboxd.steps import Step

_LEAST_INLINE_BYTES = 256
_EVENT_INLINE_BYTES = 4096
_Runs = Mapping[tuple[int, int | None], RunResult]


async def step_views(
    steps: Sequence[Step], runs: Sequence[RunResult], log: ReadableLog | None
) -> list[StepView]:
    """Every step, with the runs that have ended. All runs share what an answer shows of output.

    Raises NotFound if the log was removed meanwhile.
    """
    by_place = {(run.step, run.case): run for run in runs}
    most_bytes = max(_LEAST_INLINE_BYTES, INLINE_BYTES // max(1, len(runs)))
    try:
        return [
            await _step_view(number, step, by_place, log, most_bytes)
            for number, step in enumerate(steps)
        ]
    except FileNotFoundError as error:
        raise NotFound("The log is gone.", code="log_gone") from error


async def _step_view(
    number: int, step: Step, runs: _Runs, log: ReadableLog | None, most_bytes: int
) -> StepView:
    own = runs.get((number, None))
    inputs = [
        RunView(**await _fields(case.name, runs.get((number, place)), log, most_bytes))
        for place, case in enumerate(step.cases)
    ]
    return StepView(
        command=step.command,
        continue_on_failure=step.continue_on_failure,
        inputs=inputs or UNSET,
        accepted=_count_good(number, runs) if inputs else UNSET,
        **await _fields(step.name, own, log, most_bytes),
    )


async def run_event_view(
    steps: Sequence[Step], run: RunResult, log: ReadableLog | None
) -> RunEventView:
    """One run that has ended. Raises FileNotFoundError if the log was removed meanwhile."""
    step = steps[run.step]
    name = step.name if run.case is None else step.cases[run.case].name
    place = UNSET if run.case is None else run.case
    fields = await _fields(name, run, log, _EVENT_INLINE_BYTES)
    return RunEventView(step=run.step, input=place, **fields)


async def _fields(
    name: str | None, run: RunResult | None, log: ReadableLog | None, most_bytes: int
) -> dict[str, Any]:
    named = {} if name is None else {"name": name}
    if run is None:
        return named
    return {
        **named,
        "state": run.state,
        "reason": run.reason,
        "verdict": UNSET if run.verdict is None else run.verdict,
        "difference": UNSET if run.difference is None else _difference_view(run.difference),
        "exit": exit_view(run.exit),
        "error": UNSET if run.error is None else error_view(run.error),
        "usage": usage_view(run.usage),
        "started_at": UNSET if run.started_at is None else rfc3339(run.started_at),
        **await _output(run, log, most_bytes),
    }


async def _output(run: RunResult, log: ReadableLog | None, most_bytes: int) -> dict[str, Any]:
    if log is None:
        return {}
    shown = {}
    for stream, span in ((Stream.STDOUT, run.stdout), (Stream.STDERR, run.stderr)):
        # What came when the job had already written all it may is counted, and not kept.
        kept = max(0, min(span.size_bytes, log.size(stream) - span.offset))
        part = Span(offset=span.offset, size_bytes=kept)
        truncated = kept < span.size_bytes
        shown[stream] = await inline(log, stream, part, most_bytes, truncated=truncated)
    (stdout, stdout_view), (stderr, stderr_view) = shown[Stream.STDOUT], shown[Stream.STDERR]
    streams = StreamsView(stdout=stdout_view, stderr=stderr_view)
    return {"stdout": stdout, "stderr": stderr, "streams": streams}


def _count_good(step: int, runs: _Runs) -> int:
    return sum(run.good for (number, _), run in runs.items() if number == step)


def _difference_view(difference: Difference) -> DifferenceView:
    return DifferenceView(
        line=difference.line, expected=difference.expected, printed=difference.printed
    )
