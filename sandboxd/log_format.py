"""How the service's own log looks: one line per event on standard error."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from sandboxd.errors import BrokenOff
from sandboxd.settings import LogSettings


def configure_logging(settings: LogSettings) -> None:
    """For people on a terminal, JSON lines elsewhere, unless the settings say otherwise."""
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    processors: list[Processor]
    logger_factory: Callable[..., WrappedLogger]
    if as_json:
        processors = [_as_json]
        logger_factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    else:
        processors = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.set_exc_info,
            _tidy,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ]
        logger_factory = structlog.PrintLoggerFactory(sys.stderr)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=logger_factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Library()], level=logging.WARNING, force=True)


def _tidy(_logger: object, _method: str, event: EventDict) -> EventDict:
    """When, how bad and what come first, then the rest; what has no value is left out."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return first | {name: value for name, value in event.items() if value is not None}


def _as_json(logger: object, method: str, event: EventDict) -> bytes:
    """The same as a line of JSON, in one step: there is one for each request.

    In ASCII, so that nothing in it acts on a terminal or is taken for its end.
    """
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(logger, method, event)
    told: EventDict = {
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "level": _LEVELS.get(method, method),
        "event": event.pop("event", None),
    }
    for name, value in event.items():
        if value is not None:
            told[name] = value
    try:
        line = _to_json(told)
    except (msgspec.MsgspecError, ValueError, OverflowError):
        line = b""  # a lone surrogate of a file's name, or a number that is too long
    if line and line.isascii():
        return line
    return json.dumps(told, default=repr).encode()


_LEVELS = {"exception": "error", "warn": "warning"}
_to_json = msgspec.json.Encoder(enc_hook=repr).encode


class _Library(logging.Handler):
    """What libraries have to say goes the same way: every line of the log has one form."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], BrokenOff):
            return
        structlog.get_logger().log(
            record.levelno, record.getMessage(), library=record.name, exc_info=record.exc_info
        )
