"""The catalogue of attacks, docs/attacks.md, and which test modules say by their marker that they try which row of it."""

import ast
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).parent.parent
PAGE = TREE / "docs" / "attacks.md"


class Row(NamedTuple):
    """One line of the table."""

    number: int
    technique: str
    wall: str
    modules: frozenset[str]
    """Names of test modules, as `test_walls`."""
    reason: str
    """Why no test tries it; empty if one does."""


def read_rows(page: Path = PAGE) -> list[Row]:
    return [_row(line) for line in page.read_text().splitlines() if _is_row(line)]


def _is_row(line: str) -> bool:
    return line.startswith("| ") and line.split("|")[1].strip().isdigit()


def _row(line: str) -> Row:
    _, number, technique, wall, tried, _ = (cell.strip() for cell in line.split("|"))
    modules = frozenset(word.strip("`, ") for word in tried.split() if word.startswith("`test_"))
    return Row(int(number), technique, wall, modules, "" if modules else tried)


def marked_rows(tests: Path = TREE / "tests") -> dict[str, set[int]]:
    """Each test module that has markers, to the rows that they name."""
    found = {path.stem: _marks_in(path) for path in tests.rglob("test_*.py")}
    return {module: rows for module, rows in found.items() if rows}


def _marks_in(path: Path) -> set[int]:
    """`@pytest.mark.attack(12, 27)` as it is written, wherever in the module it stands."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    marks = [call for call in calls if ast.unparse(call.func) == "pytest.mark.attack"]
    return {int(ast.literal_eval(argument)) for mark in marks for argument in mark.args}
