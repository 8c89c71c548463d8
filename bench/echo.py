"""The least that Starlette does for a request: its body back. What `POST /v1/jobs` is held against."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def echo(request: Request) -> Response:
    return Response(await request.body(), status_code=202, media_type="application/json")


app = Starlette(routes=[Route("/v1/jobs", echo, methods=["POST"])])
