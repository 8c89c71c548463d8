"""How the service's own log looks: one line per event on standard error."""

import logging
import sys

import structlog
from structlog.typing import EventDict, Processor

from sandboxd.errors import BrokenOff
from sandboxd.settings import LogSettings


def configure_logging(settings: LogSettings) -> None:
    """For people on a terminal, JSON lines elsewhere, unless the settings say otherwise."""
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    renderer: Processor = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    if as_json:
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if as_json else structlog.dev.set_exc_info,
            _tidy,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Library()], level=logging.WARNING, force=True)


def _tidy(_logger: object, _method: str, event: EventDict) -> EventDict:
    """When, how bad and what come first, then the rest; what has no value is left out."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return first | {name: value for name, value in event.items() if value is not None}


class _Library(logging.Handler):
    """What libraries have to say goes the same way: every line of the log has one form."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], BrokenOff):
            return
        structlog.get_logger().log(
            record.levelno, record.getMessage(), library=record.name, exc_info=record.exc_info
        )
