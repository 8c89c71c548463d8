"""The service's own log, as a pipe has it."""

import json
import subprocess
import sys

from command_line import environment

BEFORE = (
    "import pathlib, structlog\n"
    "from sandboxd.log_format import configure_logging\n"
    "from sandboxd.settings import LogSettings\n"
    "configure_logging(LogSettings())\n"
    "log = structlog.get_logger()\n"
)


def lines_of(code: str) -> list[str]:
    """What a program leaves on its error output that says this to the log, which is a pipe there."""
    ended = subprocess.run(
        [sys.executable, "-c", BEFORE + code], env=environment(), capture_output=True, check=True
    )
    return ended.stderr.decode("ascii").splitlines()


def test_a_json_line_begins_with_time_level_and_event_and_has_no_empty_values() -> None:
    (told,) = lines_of("log.info('ended', job='job_1', error=None, code=0)")

    line = json.loads(told)
    assert list(line) == ["timestamp", "level", "event", "job", "code"]


def test_whatever_is_told_is_a_line_of_ascii() -> None:
    lines = lines_of(
        "log.info('told', name='a\\x9b\\u2028\\nb')\n"
        "log.info('told', name='a\\udcff')\n"
        "log.info('told', name=2**200)\n"
        "log.info('told', name=pathlib.Path('/a'))\n"
    )

    told = [json.loads(line)["name"] for line in lines]
    assert told == ["a\x9b\u2028\nb", "a\udcff", 2**200, "PosixPath('/a')"]
