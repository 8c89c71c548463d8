"""Images over HTTP: list, show, pull with progress, remove, tidy up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple

import msgspec
import structlog
from starlette.responses import Response

from sandboxd.api.answers import encode, json_answer, list_answer, no_content
from sandboxd.api.auth import ADMIN
from sandboxd.api.body import parse_json, read_body, require_json
from sandboxd.api.conversion import read_struct
from sandboxd.api.hanging_up import while_connected
from sandboxd.api.image_schemas import LayerProgressView, PruneRequest, PullLine, PullRequest
from sandboxd.api.image_views import image_detail_view, pruned_view
from sandboxd.api.key_watch import KeyedStream
from sandboxd.api.log_reader import HEARTBEAT_SECONDS
from sandboxd.api.parts import Call
from sandboxd.api.problems import is_internal, problem_of
from sandboxd.api.sse import comment, event
from sandboxd.api.streams import NDJSON, SSE
from sandboxd.api.tenants import check_allowed
from sandboxd.api.validate import invalid
from sandboxd.api.views import image_view
from sandboxd.errors import Fault, NotFound
from sandboxd.images.details import details_of
from sandboxd.images.documents.references import (
    BadReference,
    Reference,
    is_reference,
    parse_reference,
)
from sandboxd.images.puller import Puller
from sandboxd.images.resolved import ResolvedImage
from sandboxd.images.transfers import Progress, Tell
from sandboxd.isolation.spec import NATIVE, NetworkMode
from sandboxd.jobs import Image, PullPolicy

logger = structlog.get_logger(__name__)

Work = Callable[[Tell], Coroutine[Any, Any, PullLine]]
"""What is done while somebody hears how far the layers are; its last line."""

JSON = "application/json"
OFFERED = (NDJSON, SSE, JSON)

_MAX_BODY_BYTES = 64 * 2**10
_PAUSE_SECONDS = 0.1
"""Between two looks at how far the layers are."""
_UNBUFFERED = {"X-Accel-Buffering": "no"}


async def image_at_hand(call: Call, name: str, pull: PullPolicy) -> ResolvedImage | None:
    """The image that a job names, if it is here and may be used as it is. None: it is pulled when the job starts.

    Raises NotFound for one that is not here and will not come.
    """
    may_come = is_reference(name) and pull is not PullPolicy.NEVER and call.parts.puller is not None
    if may_come and pull is PullPolicy.ALWAYS:
        return None
    try:
        return await call.parts.images.resolve(name, call.tenant)
    except NotFound:
        if may_come:
            return None
        raise


async def list_(call: Call) -> Response:
    """GET /v1/images"""
    return list_answer([image_view(each) for each in await call.parts.images.list(viewer_of(call))])


async def show(call: Call) -> Response:
    """GET /v1/images/{name}"""
    details = await details_of(puller_of(call).images, call.parameters["name"], viewer_of(call))
    return json_answer(image_detail_view(details, for_operator=not viewer_of(call)))


async def remove(call: Call) -> Response:
    """DELETE /v1/images/{name}"""
    await puller_of(call).images.remove(call.parameters["name"])
    return no_content()


async def prune(call: Call) -> Response:
    """POST /v1/images/prune"""
    body = await read_body(call.scope, call.receive, max_bytes=_MAX_BODY_BYTES)
    if body:
        require_json(call.scope)
    request, faults = read_struct(parse_json(body) if body else {}, PruneRequest)
    if faults:
        raise invalid(faults)
    pruned = await puller_of(call).images.prune(
        all=request.all, unused_seconds=request.unused_seconds
    )
    for path, reason in pruned.remaining.items():
        logger.warning("leftover not removed", path=path, error=reason)
    return json_answer(pruned_view(pruned))


async def pull(call: Call) -> Response:
    """POST /v1/images/pull"""
    require_json(call.scope)
    body = await read_body(call.scope, call.receive, max_bytes=_MAX_BODY_BYTES)
    request, faults = read_struct(parse_json(body), PullRequest)
    if request.pull is PullPolicy.NEVER:
        faults.append(Fault("/pull", 'must be "always" or "missing"'))
    try:
        reference = parse_reference(request.image)
    except BadReference as error:
        faults.append(Fault("/image", f"the reference {error}"))
    if faults:
        raise invalid(faults)
    check_allowed(call, image=str(reference), network_mode=NetworkMode.NONE, runtime=NATIVE)
    wanted = _Wanted(puller_of(call), reference, request.pull, call.tenant)
    if call.media_type == JSON:
        image = await while_connected(call, wanted.come(lambda _: None))
        return json_answer(image_view(image))
    return in_lines(call, wanted.last_line)


def in_lines(call: Call, work: Work) -> Response:
    """The answer to who wants to hear how it goes, as lines or as events."""
    lines = _as_events(call, work) if call.media_type == SSE else _as_lines(call, work)
    return KeyedStream(call, lines, headers=_UNBUFFERED, media_type=call.media_type)


class _Wanted(NamedTuple):
    """An image that somebody waits for."""

    puller: Puller
    reference: Reference
    policy: PullPolicy
    tenant: str

    async def come(self, tell: Tell) -> Image:
        """Raises as `Puller.pull`."""
        if self.policy is PullPolicy.MISSING:
            with contextlib.suppress(NotFound):
                return self.puller.images.record(str(self.reference), self.tenant).image
        return (await self.puller.pull(self.reference, self.tenant, tell)).image

    async def last_line(self, tell: Tell) -> PullLine:
        return PullLine(image=image_view(await self.come(tell)))


async def _as_lines(call: Call, work: Work) -> AsyncIterator[bytes]:
    async for lines in _lines(call, work):
        yield b"".join(encode(line) + b"\n" for line in lines)


async def _as_events(call: Call, work: Work) -> AsyncIterator[bytes]:
    """Called by the one member that a line has. None of them has an id: who comes back asks for a pull of his own."""
    async for lines in _lines(call, work):
        if not lines:
            yield comment("waiting")
        for line in lines:
            (name,) = (each for each in line.__struct_fields__ if getattr(line, each) is not None)
            yield event(name, "", encode(getattr(line, name)))


async def _lines(call: Call, work: Work) -> AsyncIterator[list[PullLine]]:
    """How far the layers are, each as it is now: a slow reader misses steps, and delays nobody. What came of it, or a problem, last.

    Nothing, now and then, shows that the connection lives.
    """
    news = asyncio.Event()
    latest: dict[str, Progress] = {}

    def tell(progress: Progress) -> None:
        latest[progress.digest] = progress
        news.set()

    coming = asyncio.ensure_future(work(tell))
    coming.add_done_callback(lambda _: news.set())
    try:
        while not coming.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await news.wait()
            news.clear()
            lines = [PullLine(layer=_layer_view(each)) for each in latest.values()]
            latest.clear()
            if lines or not coming.done():
                yield lines
            await asyncio.wait((coming,), timeout=_PAUSE_SECONDS)
        if latest:
            yield [PullLine(layer=_layer_view(each)) for each in latest.values()]
        yield [_last_line(call, coming)]
    finally:
        coming.cancel()


def _last_line(call: Call, coming: "asyncio.Future[PullLine]") -> PullLine:
    error = coming.exception()
    if error is None:
        return coming.result()
    if not isinstance(error, Exception):
        raise error
    if is_internal(error):
        logger.error("pull or push failed", request_id=call.request_id, exc_info=error)
    problem = problem_of(error, path=call.scope["path"], request_id=call.request_id)
    return PullLine(problem=msgspec.Raw(bytes(problem.body)))


def puller_of(call: Call) -> Puller:
    """What images are pulled and kept by. Raises NotFound where there are none but the machine's own."""
    if call.parts.puller is None:
        raise NotFound("There are no images here.")
    return call.parts.puller


def viewer_of(call: Call) -> str | None:
    """For whom images are looked at. None: the operator, who sees those of all tenants."""
    return None if ADMIN in call.principal.scopes else call.tenant


def _layer_view(progress: Progress) -> LayerProgressView:
    return LayerProgressView(**progress._asdict())
