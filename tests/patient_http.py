"""Requests of one call each, on a machine that may be held up for some seconds: httpx2 itself waits five for an answer."""

import functools

import httpx2
from waiting import TIME_FACTOR

_SECONDS = 60.0 * TIME_FACTOR

get = functools.partial(httpx2.get, timeout=_SECONDS)
post = functools.partial(httpx2.post, timeout=_SECONDS)
stream = functools.partial(httpx2.stream, timeout=_SECONDS)
