"""What the steps of a request must satisfy, and the Steps that they become."""

from collections.abc import Sequence

from sandboxd.api.schemas import CaseRequest, CheckerRequest, StepLimitsRequest, StepRequest
from sandboxd.api.words import (
    check_command,
    check_environment,
    check_sizes,
    check_workdir,
    decode_text,
)
from sandboxd.errors import Fault
from sandboxd.quantities import parse_bytes
from sandboxd.quotas.limits import LEAST, Limits
from sandboxd.steps import Case, Checker, Comparison, Step, StepLimits

MAX_STEPS = 50
MAX_RUNS = 1000
"""Of all steps together: each leaves its result in the record."""


def steps_of(
    requests: Sequence[StepRequest], limits: Limits, faults: list[Fault]
) -> tuple[Step, ...]:
    """The steps that a request asks for. What is wrong with them is added to the faults."""
    if not requests:
        return ()
    if len(requests) > MAX_STEPS:
        faults.append(Fault("/steps", f"{len(requests)} are over the limit of {MAX_STEPS}"))
        return ()
    runs = sum(max(1, len(request.inputs)) for request in requests)
    if runs > MAX_RUNS:
        detail = f"{runs} runs of all steps are over the limit of {MAX_RUNS}"
        faults.append(Fault("/steps", detail))
        return ()
    return tuple(
        _step_of(request, f"/steps/{number}", limits, faults)
        for number, request in enumerate(requests)
    )


def _step_of(request: StepRequest, place: str, limits: Limits, faults: list[Fault]) -> Step:
    check_command(place, request.command, request.args, faults)
    check_environment(f"{place}/env", request.env, faults)
    check_sizes(place, (*request.command, *request.args), request.env, faults)
    check_workdir(f"{place}/workdir", request.workdir, faults)
    if request.inputs and request.stdin:
        faults.append(Fault(f"{place}/stdin", "is each input's own where a step has inputs"))
    checker = _checker_of(request.checker, f"{place}/checker", faults)
    return Step(
        name=request.name,
        command=(*request.command, *request.args),
        stdin=decode_text(request.stdin, f"{place}/stdin", faults),
        env=request.env,
        workdir=request.workdir,
        limits=_limits_of(request.limits, f"{place}/limits", limits, faults),
        continue_on_failure=request.continue_on_failure,
        cases=tuple(
            _case_of(case, f"{place}/inputs/{number}", checker, faults)
            for number, case in enumerate(request.inputs)
        ),
        stop=request.stop,
    )


def _case_of(request: CaseRequest, place: str, checker: Checker, faults: list[Fault]) -> Case:
    check_command(place, ["-"], request.args, faults)
    check_environment(f"{place}/env", request.env, faults)
    expected = None
    if request.expected is not None:
        expected = decode_text(request.expected, f"{place}/expected", faults)
    own = request.checker
    if own is not None:
        checker = _checker_of(own, f"{place}/checker", faults)
    return Case(
        name=request.name,
        stdin=decode_text(request.stdin, f"{place}/stdin", faults),
        args=tuple(request.args),
        env=request.env,
        expected=expected,
        checker=checker,
    )


def _checker_of(request: CheckerRequest, place: str, faults: list[Fault]) -> Checker:
    if request.comparison is Comparison.PROGRAM:
        check_command(place, request.command, [], faults)
    elif request.command:
        detail = 'goes with "comparison": "program"'
        faults.append(Fault(f"{place}/command", detail))
    return Checker(
        comparison=request.comparison,
        tolerance=request.tolerance,
        command=tuple(request.command),
    )


def _limits_of(
    request: StepLimitsRequest, place: str, limits: Limits, faults: list[Fault]
) -> StepLimits:
    """Each is at most the job's own."""
    output_bytes = None
    try:
        output_bytes = None if request.output_bytes is None else parse_bytes(request.output_bytes)
    except ValueError as error:
        faults.append(Fault(f"{place}/output_bytes", str(error)))
    asked = StepLimits(
        wall_seconds=request.wall_seconds,
        cpu_seconds=request.cpu_seconds,
        output_bytes=output_bytes,
    )
    for name in StepLimits.__struct_fields__:
        wish, least, most = (getattr(each, name) for each in (asked, LEAST, limits))
        if wish is not None and not least <= wish <= most:
            detail = f"{wish} is not from {least} to the job's own {most}"
            faults.append(Fault(f"{place}/{name}", detail))
    return asked
