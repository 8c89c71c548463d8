"""`make run`: what is typed reaches the command as it was typed."""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parents[2]


def test_a_dollar_in_the_arguments_is_left_to_the_command(tmp_path: Path) -> None:
    shutil.copy(SOURCE / "Makefile", tmp_path)
    prepare = tmp_path / ".ci" / "prepare"
    prepare.parent.mkdir()
    prepare.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    prepare.chmod(0o755)

    words = ["make", "run", "ARGS=run -e LANG=C -- sh -c 'echo $LANG; echo $$'"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)

    assert ended.stdout.splitlines()[-3:] == ["sh", "-c", "echo $LANG; echo $$"]
