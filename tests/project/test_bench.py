"""The bench itself: what it says of rows that are not here, what it writes, what it compares."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import TIME_FACTOR

TREE = Path(__file__).parents[2]
ROWS = """
import json
from groups import GROUPS
print(json.dumps([[[row.name for row in group.rows], [[c.one, c.other] for c in group.comparisons]]
                  for group in GROUPS]))
"""


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **environment},
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=60 * TIME_FACTOR,
        check=False,
    )


def bench(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    done = run("bench/all.py", "--quick", *words, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def figures(path: Path) -> dict[str, Any]:
    report = json.loads(path.read_text())
    return {figure["name"]: figure for part in report["sections"] for figure in part["figures"]}


@pytest.fixture(autouse=True)
def an_ordinary_user() -> None:
    if os.geteuid() == 0:
        pytest.skip("the bench runs as an ordinary user")


def test_a_row_whose_program_is_not_installed_says_so(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"

    done = bench("--row", "bwrap", "--json", str(path), PATH="/nowhere")

    assert "bwrap  not here: bwrap is not installed (Debian: bubblewrap)" in done.stdout
    (section,) = json.loads(path.read_text())["sections"]
    assert [absent["name"] for absent in section["absent"]] == ["bwrap"]


def test_the_floor_is_measured_and_the_next_run_is_compared_with_it(
    prepared_host: None, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"

    bench("--row", "floor", "--json", str(first))
    done = bench("--row", "floor", "--json", str(second), "--compare", str(first))

    floor = figures(second)["floor"]
    assert 0 < floor["low"] <= floor["value"] <= floor["high"]
    before = figures(first)["floor"]["value"]
    change = f"({floor['value'] / before - 1:+.0%})"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("floor ")]
    assert line.endswith(change)


def test_a_row_that_does_not_exist_is_refused_with_those_that_do() -> None:
    done = run("bench/all.py", "--row", "nonsense")

    assert done.returncode == 1
    assert "parked, cold" in done.stderr


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    path = closed / "figures.json"

    done = run("bench/all.py", "--quick", "--row", "bwrap", "--json", str(path))

    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{path} cannot be written by " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [None, b"not JSON", b'{"version": 1}', b'{"version": "0.1.0"}'])
def test_a_file_that_cannot_be_compared_with_is_told_before_anything_is_measured(
    tmp_path: Path, content: bytes | None
) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    if content is not None:
        before.write_bytes(content)

    done = run("bench/all.py", "--row", "bwrap", "--json", str(after), "--compare", str(before))

    assert done.returncode == 1
    assert done.stdout == ""
    assert str(before) in done.stderr
    assert "Traceback" not in done.stderr
    assert not after.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_shows_and_writes_what_there_is(
    prepared_host: None, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "figures.json"
    ours, theirs = pty.openpty()
    words = [sys.executable, "bench/all.py", "--row", "floor", "--json", str(path)]
    with subprocess.Popen(words, cwd=TREE, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        told = b""
        while b"3 of 30, floor" not in told:
            told += os.read(ours, 2**12)
        process.send_signal(number)
        shown, _ = process.communicate(timeout=60 * TIME_FACTOR)
    os.close(ours)

    assert process.returncode == 128 + number
    assert b"It was interrupted" in shown
    assert json.loads(path.read_text())["complete"] is False
    assert figures(path)["floor"]["count"] >= 20


def test_each_row_has_a_name_of_its_own_and_each_comparison_two_rows_of_its_group() -> None:
    done = run("-c", ROWS, PYTHONPATH=f"{TREE}:{TREE / 'bench'}")
    groups = json.loads(done.stdout)

    names = [name for rows, _ in groups for name in rows]
    assert len(names) == len(set(names))
    for rows, comparisons in groups:
        assert {name for pair in comparisons for name in pair} <= set(rows)
