"""pytest --attacks: run the tests that try attacks, and say at the end of each row of the catalogue how it went."""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from attack_catalogue import Row, read_rows

STOPPED, NOT_STOPPED, NOT_TRIED = "stopped", "NOT STOPPED", "not tried"
_COLOURS = {STOPPED: "green", NOT_STOPPED: "red", NOT_TRIED: "yellow"}
_PROPERTY = "attack"
_TECHNIQUE_WIDTH = 72
_OTHER_COLUMNS_WIDTH = len("  75        100  NOT STOPPED")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--attacks",
        action="store_true",
        help="only the tests with the marker `attack`, and a table of docs/attacks.md at the end",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.attacks:
        config.pluginmanager.register(_AttackReport(), "attacks")


class _AttackReport:
    def __init__(self) -> None:
        self.outcomes: dict[int, dict[str, str]] = {}
        """By row: each test that tries it, and how it ended."""

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        others = [item for item in items if item.get_closest_marker("attack") is None]
        if others:
            config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]
        for item in items:
            # What travels to the process that writes the table, when others run the tests (pytest-xdist).
            item.user_properties.append((_PROPERTY, _rows_tried(item)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # What comes before and after a test counts only if it fails, and then more than the test itself.
        if report.when != "call" and report.passed:
            return
        for name, rows in report.user_properties:
            if name == _PROPERTY and isinstance(rows, list):
                for row in rows:
                    self.outcomes.setdefault(row, {})[report.nodeid] = report.outcome

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        # Attacks by root are a run of their own, and there may be none.
        nothing_for_root = session.config.option.markexpr == "as_root"
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and nothing_for_root:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.outcomes:
            counted = {row: Counter(tests.values()) for row, tests in self.outcomes.items()}
            _write_table(terminalreporter, counted)


def _rows_tried(item: pytest.Item) -> list[int]:
    return sorted({row for mark in item.iter_markers("attack") for row in mark.args})


def verdict(outcomes: Mapping[str, int]) -> str:
    """Of one row: a single test that failed is a way through; one that was skipped is none that was tried."""
    if outcomes.get("failed"):
        return NOT_STOPPED
    return STOPPED if outcomes.get("passed") else NOT_TRIED


def _write_table(terminal: pytest.TerminalReporter, outcomes: Mapping[int, Counter[str]]) -> None:
    rows = read_rows()
    width = min(_TECHNIQUE_WIDTH, shutil.get_terminal_size().columns - _OTHER_COLUMNS_WIDTH)
    terminal.section("attacks (docs/attacks.md)")
    terminal.write_line(f"{'row':>4}  {'technique':{width}} {'tests':>5}  result", bold=True)
    for row in rows:
        tried = outcomes.get(row.number, Counter())
        word = verdict(tried)
        technique = _shortened(row.technique, width)
        terminal.write(f"{row.number:>4}  {technique:{width}} {tried.total():>5}  ")
        terminal.write_line(word + _why_not(row, word), **{_COLOURS[word]: True})
    _write_sum(terminal, (verdict(outcomes.get(row.number, {})) for row in rows))


def _shortened(text: str, width: int) -> str:
    plain = text.replace("`", "")
    return plain if len(plain) <= width else plain[: width - 1] + "…"


def _why_not(row: Row, word: str) -> str:
    if word != NOT_TRIED:
        return ""
    return f": {row.reason}" if row.reason else ": not in this run, or skipped"


def _write_sum(terminal: pytest.TerminalReporter, verdicts: Iterable[str]) -> None:
    counts = Counter(verdicts)
    text = ", ".join(f"{counts[word]} {word}" for word in (STOPPED, NOT_STOPPED, NOT_TRIED))
    colour = "red" if counts[NOT_STOPPED] else "green"
    terminal.write_line(f"{counts.total()} rows: {text}", bold=True, **{colour: True})
