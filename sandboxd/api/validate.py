"""What a job request must satisfy beyond its types, and the JobSpec that it becomes."""

import functools
import re
from collections.abc import Callable, Sequence

from msgspec import UNSET

from sandboxd.api.conversion import pointer_to, read_struct
from sandboxd.api.files import files_of, outputs_of
from sandboxd.api.schemas import CeilingsRequest, JobRequest
from sandboxd.api.steps import steps_of
from sandboxd.api.words import (
    check_command,
    check_environment,
    check_sizes,
    check_workdir,
    decode_text,
    size_of,
    too_long,
)
from sandboxd.cpu_lists import parse_cpu_list
from sandboxd.errors import Fault, Invalid
from sandboxd.images.documents.references import BadReference, is_reference, parse_reference
from sandboxd.images.store.names import is_name
from sandboxd.isolation.destinations import MOST_DESTINATIONS, parse_destination
from sandboxd.isolation.spec import NetworkMode
from sandboxd.jobs import InputFile, JobSpec, Network, PullPolicy, Retry
from sandboxd.quantities import parse_bytes, parse_cpus
from sandboxd.quotas.limits import NOTHING_ASKED, Limits, LimitsAsked, settle
from sandboxd.settings import ImagesSettings
from sandboxd.signal_names import parse_signal

MAX_LABELS = 64
MAX_LABEL_VALUE_BYTES = 256
MAX_REQUIREMENTS = 32
MAX_ID = 2**31 - 1
MAX_QUEUE_SECONDS = 7 * 86_400.0
MAX_TTL_SECONDS = 10 * 366 * 86_400.0

_LABEL_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_NUMERIC_ID = re.compile(r"0|[1-9][0-9]{0,9}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REQUIREMENT = re.compile(r"[a-z][a-z0-9_]{0,31}")

Check = Callable[[JobSpec], list[Fault]]
"""What this host cannot do for a job, as faults."""
CommandOf = Callable[[str, Sequence[str]], tuple[str, ...] | None]
"""What an image runs of its own accord with these arguments; empty if its author did not say. None: it is not here."""


def no_command(_: str, __: Sequence[str]) -> tuple[str, ...]:
    """For images that do not say what they run."""
    return ()


_USUAL_IMAGES = ImagesSettings()


def job_spec_of(
    value: object,
    *,
    defaults: Limits,
    ceilings: Limits,
    check: Check,
    command_of: CommandOf = no_command,
    uploaded: tuple[InputFile, ...] = (),
    own_ceilings: LimitsAsked = NOTHING_ASKED,
    images: ImagesSettings = _USUAL_IMAGES,
) -> JobSpec:
    """The job that a parsed request body asks for, with the files that were `uploaded` beside it.

    `own_ceilings`: its tenant's. Raises Invalid with every fault of the request at once.
    """
    request, faults = read_struct(value, JobRequest)
    if not isinstance(value, dict):
        raise invalid(faults)  # it has no places that could be wrong
    stdin = decode_text(request.stdin, "/stdin", faults)
    files, contents = files_of(request, uploaded, faults)
    outputs = outputs_of(request, faults)
    user = _parse_user(request, faults)
    asked = limits_asked(request.limits, "/limits", faults)
    limits, out_of_bounds = settle(asked, defaults, ceilings, own_ceilings)
    faults += out_of_bounds
    image = _image(request, faults)
    pull = PullPolicy(images.pull) if request.pull is None else request.pull
    command = _command(request, pull, command_of, faults)
    _check_pull_seconds(request, images, faults)
    for step in (
        _check_surroundings,
        _check_labels,
        _check_requirements,
        _check_durations,
        _check_network,
    ):
        step(request, faults)
    spec = JobSpec(
        image=image,
        pull=pull,
        pull_seconds=request.limits.pull_seconds,
        command=command,
        args=() if command else tuple(request.args),
        steps=steps_of(request.steps, limits, faults),
        stdin=stdin,
        env=request.env,
        workdir=request.workdir,
        files=files,
        contents=contents,
        outputs=outputs,
        keep_on_failure_seconds=request.keep_on_failure_seconds,
        changes=request.changes,
        user=user,
        limits=limits,
        runtime=request.runtime,
        network=Network(
            mode=request.network.mode,
            allow=None if request.network.allow is None else tuple(request.network.allow),
        ),
        queue_seconds=request.limits.queue_seconds,
        require=request.require,
        priority=request.priority,
        cpuset=_cpuset(request, faults),
        stop_signal=_stop_signal(request, faults),
        labels=request.labels,
        retry=Retry(max_attempts=request.retry.max_attempts),
        ttl_seconds=request.ttl_seconds,
    )
    faults += check(spec)
    if faults:
        raise invalid(faults)
    return spec


def invalid(faults: list[Fault]) -> Invalid:
    """The refusal of a request with these faults, of which only the first of each place is told."""
    told: dict[str, Fault] = {}
    for fault in faults:
        if not any(place in told for place in _places_above(fault.pointer)):
            told.setdefault(fault.pointer, fault)
    number = len(told)
    detail = "The request has a fault." if number == 1 else f"The request has {number} faults."
    return Invalid(detail, tuple(told.values()))


def _places_above(pointer: str) -> list[str]:
    """The pointers of the values that contain this one: a fault there was the cause of this one."""
    parts = pointer.split("/")
    return ["/".join(parts[:length]) for length in range(2, len(parts))]


def _parse_user(request: JobRequest, faults: list[Fault]) -> tuple[int, int] | None:
    if request.user is None:
        return None
    uid, _, gid = request.user.partition(":")
    if ":" not in request.user:
        gid = uid
    ids = [int(word) for word in (uid, gid) if _NUMERIC_ID.fullmatch(word)]
    if len(ids) != 2:
        faults.append(
            Fault(
                "/user",
                'must be a numeric "uid" or "uid:gid": names are not looked up in the image',
            )
        )
        return None
    if max(ids) > MAX_ID:
        faults.append(Fault("/user", f"ids go from 0 to {MAX_ID}"))
        return None
    return ids[0], ids[1]


def limits_asked(asked: CeilingsRequest, place: str, faults: list[Fault]) -> LimitsAsked:
    """The same in our units."""
    limits, found = _in_our_units(asked, place)
    faults += found
    return limits


@functools.lru_cache(maxsize=256)
def _in_our_units(asked: CeilingsRequest, place: str) -> tuple[LimitsAsked, tuple[Fault, ...]]:
    """Most jobs ask for what others asked for before."""
    faults: list[Fault] = []

    def size_of(name: str) -> int | None:
        value: int | str | None = getattr(asked, name)
        try:
            return None if value is None else parse_bytes(value)
        except ValueError as error:
            faults.append(Fault(f"{place}/{name}", str(error)))
            return None

    cpus = None
    try:
        cpus = None if asked.cpus is None else parse_cpus(asked.cpus)
    except ValueError as error:
        faults.append(Fault(f"{place}/cpus", str(error)))
    limits = LimitsAsked(
        cpus=cpus,
        memory_bytes=size_of("memory"),
        pids=asked.pids,
        disk_bytes=size_of("disk"),
        wall_seconds=asked.wall_seconds,
        cpu_seconds=asked.cpu_seconds,
        output_bytes=size_of("output_bytes"),
        open_files=asked.open_files,
        idle_seconds=asked.idle_seconds,
        network_bytes=size_of("network_bytes"),
        swap_bytes=size_of("swap"),
        io_bytes_per_second=size_of("io_bytes_per_second"),
    )
    return limits, tuple(faults)


def _cpuset(request: JobRequest, faults: list[Fault]) -> tuple[int, ...]:
    if request.cpuset is None:
        return ()
    try:
        return parse_cpu_list(request.cpuset)
    except ValueError as error:
        faults.append(Fault("/cpuset", f"{error}: write it as in 0-2,5"))
    return ()


def _stop_signal(request: JobRequest, faults: list[Fault]) -> int | None:
    if request.stop_signal is None:
        return None
    try:
        return parse_signal(request.stop_signal)
    except ValueError as error:
        faults.append(Fault("/stop_signal", f"{error}: write it as SIGTERM, TERM or 15"))
    return None


def _image(request: JobRequest, faults: list[Fault]) -> str:
    """Its name in the one form that is stored and compared: that of an import as it is, a reference whole."""
    if is_reference(request.image):
        try:
            return str(parse_reference(request.image))
        except BadReference as error:
            faults.append(Fault("/image", f"the reference {error}"))
    elif not is_name(request.image):
        faults.append(
            Fault("/image", 'is not a name such as "host", nor one of a registry\'s image')
        )
    return request.image


def _command(
    request: JobRequest, pull: PullPolicy, command_of: CommandOf, faults: list[Fault]
) -> tuple[str, ...]:
    """The request's command. Nothing where there are steps, and where the image says what runs: it is asked at the start."""
    command = [] if request.command is UNSET else request.command
    if request.steps:
        for name, given in (("command", command), ("args", request.args), ("stdin", request.stdin)):
            if given:
                faults.append(Fault(f"/{name}", "is each step's own where a job has steps"))
        return ()
    if request.command is not UNSET:
        check_command("", command, request.args, faults)
        words = (*command, *request.args)
        check_sizes("", words, request.env, faults)
        return words
    of_image: tuple[str, ...] | None = None
    if any(fault.pointer == "/image" for fault in faults):
        of_image = ()
    elif pull is not PullPolicy.ALWAYS or not is_reference(request.image):
        of_image = command_of(request.image, request.args)
    if of_image == ():
        faults.append(Fault("/command", "is required: this image does not say what it runs"))
    else:
        check_command("", ["-"], request.args, faults)
    check_sizes("", of_image or request.args, request.env, faults)
    return ()


def _check_surroundings(request: JobRequest, faults: list[Fault]) -> None:
    check_environment("/env", request.env, faults)
    check_workdir("/workdir", request.workdir, faults)


def _check_labels(request: JobRequest, faults: list[Fault]) -> None:
    if len(request.labels) > MAX_LABELS:
        faults.append(
            Fault("/labels", f"{len(request.labels)} labels are over the limit of {MAX_LABELS}")
        )
        return
    for key, value in request.labels.items():
        place = pointer_to("/labels", key)
        if not _LABEL_KEY.fullmatch(key):
            faults.append(Fault(place, "a label's key is 1 to 63 of A-Z a-z 0-9 . _ / -"))
        elif (size := size_of(value)) > MAX_LABEL_VALUE_BYTES:
            faults.append(Fault(place, too_long(size, MAX_LABEL_VALUE_BYTES)))
        elif _CONTROL.search(value):
            faults.append(Fault(place, "has a control character"))


def _check_requirements(request: JobRequest, faults: list[Fault]) -> None:
    if len(request.require) > MAX_REQUIREMENTS:
        faults.append(Fault("/require", f"more than {MAX_REQUIREMENTS} requirements"))
        return
    for name, least in request.require.items():
        if not _REQUIREMENT.fullmatch(name):
            faults.append(Fault(pointer_to("/require", name), "is not the name of a limit or wall"))
        elif not _REQUIREMENT.fullmatch(least):
            faults.append(Fault(pointer_to("/require", name), "is not the name of an enforcement"))


def _check_durations(request: JobRequest, faults: list[Fault]) -> None:
    for place, seconds, most in (
        ("/limits/queue_seconds", request.limits.queue_seconds, MAX_QUEUE_SECONDS),
        ("/ttl_seconds", request.ttl_seconds, MAX_TTL_SECONDS),
    ):
        if seconds is not None and not 0 <= seconds <= most:
            faults.append(Fault(place, f"{seconds} is not from 0 to {most}"))


def _check_pull_seconds(request: JobRequest, images: ImagesSettings, faults: list[Fault]) -> None:
    seconds, most = request.limits.pull_seconds, images.pull_seconds
    if seconds is not None and not 0 <= seconds <= most:
        faults.append(Fault("/limits/pull_seconds", f"{seconds} is not from 0 to {most}"))


def _check_network(request: JobRequest, faults: list[Fault]) -> None:
    network, place = request.network, "/network/allow"
    if network.allow is None:
        return
    if network.mode is not NetworkMode.EGRESS:
        faults.append(Fault(place, 'goes with "mode": "egress"'))
    elif not network.allow:
        faults.append(Fault(place, 'is empty: use "mode": "none", or leave it out'))
    elif len(network.allow) > MOST_DESTINATIONS:
        count = len(network.allow)
        faults.append(Fault(place, f"{count} entries are over the limit of {MOST_DESTINATIONS}"))
    else:
        for index, text in enumerate(network.allow):
            try:
                parse_destination(text)
            except ValueError as error:
                faults.append(Fault(f"{place}/{index}", str(error)))
