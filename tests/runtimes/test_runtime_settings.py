"""OCI runtimes in the settings."""

from pathlib import Path

import pytest

from sandboxd.errors import SettingsError
from sandboxd.settings import RuntimeSettings
from sandboxd.settings_loader import Loaded, load_settings, variable_of


def load(environ: dict[str, str], file: str = "", tmp_path: Path | None = None) -> Loaded:
    if tmp_path is None:
        return load_settings({}, {"SANDBOXD_CONFIG": "", **environ})
    path = tmp_path / "config.toml"
    path.write_text(file)
    return load_settings({}, {"SANDBOXD_CONFIG": str(path), **environ})


def test_there_is_none_but_native_at_first() -> None:
    assert load({}).settings.runtimes == {}


def test_a_file_names_runtimes(tmp_path: Path) -> None:
    file = (
        '[runtimes.runc]\npath = "/usr/sbin/runc"\n[runtimes.my-crun]\npath = "/c"\nargs = ["-x"]\n'
    )

    loaded = load({}, file, tmp_path)

    assert loaded.settings.runtimes == {
        "runc": RuntimeSettings(path="/usr/sbin/runc"),
        "my-crun": RuntimeSettings(path="/c", args=("-x",)),
    }
    assert loaded.origins["runtimes.my-crun.args"] == f"file {tmp_path}/config.toml"


def test_the_environment_names_them_too_and_wins(tmp_path: Path) -> None:
    variables = {
        "SANDBOXD_RUNTIMES_RUNC_PATH": "/opt/runc",
        "SANDBOXD_RUNTIMES_RUNC_ARGS": "--debug --x 'a b'",
        "SANDBOXD_RUNTIMES_MY_CRUN_PATH": "/usr/bin/crun",
    }

    loaded = load(variables, '[runtimes.runc]\npath = "/usr/sbin/runc"\n', tmp_path)

    assert loaded.settings.runtimes == {
        "runc": RuntimeSettings(path="/opt/runc", args=("--debug", "--x", "a b")),
        "my-crun": RuntimeSettings(path="/usr/bin/crun"),
    }
    assert variable_of("runtimes.my-crun.path") == "SANDBOXD_RUNTIMES_MY_CRUN_PATH"
    assert loaded.origins["runtimes.runc.path"] == "environment SANDBOXD_RUNTIMES_RUNC_PATH"


FAULTS = {
    "no path": ('[runtimes.runc]\nargs = ["-x"]\n', "runtimes.runc", "has no path"),
    "relative": ('[runtimes.runc]\npath = "runc"\n', "runtimes.runc.path", "absolute path"),
    "no text": ("[runtimes.runc]\npath = 1\n", "runtimes.runc.path", "absolute path"),
    "unknown key": ('[runtimes.runc]\npath = "/r"\nx = 1\n', "runtimes.runc.x", "path and args"),
    "one word": ('[runtimes.r]\npath = "/r"\nargs = "-x"\n', "runtimes.r.args", "list of words"),
    "native": ('[runtimes.native]\npath = "/r"\n', "runtimes.native", "always there"),
    "capitals": ('[runtimes.Runc]\npath = "/r"\n', "runtimes.Runc", "a-z 0-9"),
    "no section": ("runtimes = 1\n", "runtimes", "is a section"),
    "no sections": ("[runtimes]\nrunc = 1\n", "runtimes.runc", "is a section"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_cannot_be_used_is_named(case: str, tmp_path: Path) -> None:
    file, key, reason = FAULTS[case]

    with pytest.raises(SettingsError) as refused:
        load({}, file, tmp_path)

    assert str(refused.value).startswith(f"{key} (file ")
    assert reason in str(refused.value)


def test_words_that_no_shell_would_take_are_named() -> None:
    with pytest.raises(SettingsError, match="SANDBOXD_RUNTIMES_R_ARGS"):
        load({"SANDBOXD_RUNTIMES_R_PATH": "/r", "SANDBOXD_RUNTIMES_R_ARGS": "'"})
