"""The configuration of an image: what each field may say, what it comes to with what a job says, and what is refused."""

import json
import signal
from typing import Any

import pytest

from sandboxd.errors import Invalid
from sandboxd.images.documents.configuration import Configuration, parse_configuration
from sandboxd.images.documents.manifests import BadManifest, Machine
from sandboxd.images.documents.users import find_user
from sandboxd.images.resolved import ResolvedImage
from sandboxd.signal_names import parse_signal, signal_name

AMD64 = Machine("amd64", ("", "v1"))
DIGEST = "sha256:" + "a" * 64
TOP = f'"rootfs": {{"type": "layers", "diff_ids": ["{DIGEST}"]}}'


def parsed(run: str) -> Configuration:
    """With this JSON as its `config`."""
    return parse_configuration(f'{{{TOP}, "config": {run}}}'.encode(), AMD64, 1)


def configured(**run: Any) -> Configuration:
    return parsed(json.dumps(run))


# What is taken: each field by itself, and what it comes to.
TAKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("{}", {}),
    "null": ("null", {}),
    "every field null": (
        (
            '{"User": null, "Env": null, "Entrypoint": null, "Cmd": null, "WorkingDir": null,'
            ' "StopSignal": null, "Labels": null, "Volumes": null}'
        ),
        {},
    ),
    "every field empty": (
        '{"User": "", "Env": [], "Entrypoint": [], "Cmd": [], "WorkingDir": "", "StopSignal": ""}',
        {},
    ),
    "names in the wrong case, which mean nothing": (
        '{"entrypoint": ["/x"], "CMD": ["/x"], "user": "1", "ENV": ["A=1"], "workingdir": "/x"}',
        {},
    ),
    "fields that are not known": ('{"Privileged": true, "Runtime": "/x", "Devices": ["/dev"]}', {}),
    "what means nothing to a job, whatever it is": (
        (
            '{"Volumes": {"/": {}, "../..": {}}, "ExposedPorts": 7, "Healthcheck": {"Interval": 1},'
            ' "OnBuild": ["RUN x"], "Shell": [[]], "ArgsEscaped": "yes"}'
        ),
        {},
    ),
    "a field twice: the last one counts": ('{"User": "1", "User": "2"}', {"user": "2"}),
    "control characters in Env": (
        r'{"Env": ["A=\n\u001b[2J", "B\n=1"]}',
        {"env": {"A": "\n\x1b[2J", "B\n": "1"}},
    ),
    "an empty PATH and a HOME that is no path": (
        '{"Env": ["PATH=", "HOME=a/b"]}',
        {"env": {"PATH": "", "HOME": "a/b"}},
    ),
    "variables of the loader, which are the command's own": (
        '{"Env": ["LD_PRELOAD=/x.so"]}',
        {"env": {"LD_PRELOAD": "/x.so"}},
    ),
    "a variable twice: the last one counts": ('{"Env": ["A=1", "A=2"]}', {"env": {"A": "2"}}),
    "a working directory with . and //": ('{"WorkingDir": "/a//./b/"}', {"workdir": "/a/b"}),
    "words that are options and empty": ('{"Cmd": ["-rf", ""]}', {"cmd": ("-rf", "")}),
    "a stop signal by name": ('{"StopSignal": "SIGINT"}', {"stop_signal": 2}),
    "a stop signal by number": ('{"StopSignal": "9"}', {"stop_signal": 9}),
    "a stop signal of systemd": ('{"StopSignal": "SIGRTMIN+3"}', {"stop_signal": 37}),
}


@pytest.mark.parametrize(("run", "changes"), TAKEN.values(), ids=TAKEN)
@pytest.mark.attack(74)
def test_a_configuration_means_this(run: str, changes: dict[str, Any]) -> None:
    usual = Configuration((DIGEST,), "", {}, (), (), "/", signal.SIGTERM)

    assert parsed(run) == usual._replace(**changes)


REFUSED = {
    "Env without =": '{"Env": ["A"]}',
    "Env without a name": '{"Env": ["=1"]}',
    "Env that is an object": '{"Env": {"A": "1"}}',
    "Env with NUL": r'{"Env": ["A=\u0000"]}',
    "Env with half a character": r'{"Env": ["A=\ud800"]}',
    "Env without end": json.dumps({"Env": ["A=1"] * 10**6}),
    "Env of a megabyte": json.dumps({"Env": ["A=" + "x" * 2**20]}),
    "an entry point of the shell's form": '{"Entrypoint": "/bin/sh -c x"}',
    "a Cmd that is a string": '{"Cmd": "sh"}',
    "a Cmd of numbers": '{"Cmd": [1]}',
    "a Cmd with null": '{"Cmd": [null]}',
    "a Cmd with NUL": r'{"Cmd": ["\u0000"]}',
    "a working directory that is relative": '{"WorkingDir": "work"}',
    "a working directory with ..": '{"WorkingDir": "/a/../../etc"}',
    "a working directory with NUL": r'{"WorkingDir": "/\u0000"}',
    "a working directory of another system": r'{"WorkingDir": "C:\\work"}',
    "a user that is a number": '{"User": 0}',
    "a user without end": json.dumps({"User": "u" * 10**6}),
    "a stop signal that there is not": '{"StopSignal": "99"}',
    "a stop signal that is 0": '{"StopSignal": "0"}',
    "a stop signal that is a number": '{"StopSignal": 15}',
    "a stop signal below zero": '{"StopSignal": "-15"}',
    "a stop signal with NUL": r'{"StopSignal": "TERM\u0000"}',
    "a stop signal that is a word": '{"StopSignal": "SIG_IGN"}',
    "a real-time signal that there is not": '{"StopSignal": "SIGRTMIN+31"}',
    "a list": "[]",
    "a word": '"x"',
    "lists in lists": "[" * 100_000,
    "a cut one": '{"User": "',
}


@pytest.mark.parametrize("run", REFUSED.values(), ids=REFUSED)
@pytest.mark.attack(74)
def test_a_configuration_that_means_nothing_is_refused(run: str) -> None:
    with pytest.raises(BadManifest) as refused:
        parsed(run)

    assert len(str(refused.value)) < 1000
    str(refused.value).encode()


@pytest.mark.attack(30, 74)
def test_labels_mean_nothing() -> None:
    labels = {
        "io.containerd.runtime.v2": "/bin/sh",
        "run.oci.handler": "krun",
        "org.criu.config": "/x",
        "cdi.k8s.io/gpu": "all",
    }
    assert configured(Labels=labels) == configured()
    for anything in ([], "x", {"a": None}, {"a": {"b": ["c"]}}, {"a" * 10**6: "b" * 10**6}):
        assert configured(Labels=anything) == configured()


# https://docs.docker.com/reference/dockerfile/#understand-how-cmd-and-entrypoint-interact
@pytest.mark.parametrize(
    ("entrypoint", "cmd", "args", "runs"),
    [
        ((), (), (), ()),
        ((), (), ("a",), ()),
        ((), ("c", "d"), (), ("c", "d")),
        ((), ("c", "d"), ("a",), ("a",)),
        (("e", "f"), (), (), ("e", "f")),
        (("e", "f"), (), ("a",), ("e", "f", "a")),
        (("e",), ("c",), (), ("e", "c")),
        (("e",), ("c",), ("a", "b"), ("e", "a", "b")),
        (("e",), ("c",), ("",), ("e", "")),
    ],
)
def test_entry_point_command_and_arguments_make_what_runs(
    entrypoint: tuple[str, ...],
    cmd: tuple[str, ...],
    args: tuple[str, ...],
    runs: tuple[str, ...],
) -> None:
    image = ResolvedImage(
        name="x", digest=DIGEST, rootfs="/x", env={}, entrypoint=entrypoint, cmd=cmd
    )

    assert image.command(args) == runs


PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
app:x:123:456:App:/srv/app:/bin/sh
app:x:0:0:again:/again:/bin/sh
7:x:70:71:a name of digits:/seven:/bin/sh
relative:x:8:8::home:/bin/sh
odd:x:9:9::/a\x1bb:/bin/sh
letters:x:a:b::/:/bin/sh
minus:x:-1:-1::/:/bin/sh
none:x:4294967295:0::/:/bin/sh
short:x:1
"""
GROUP = b"root:x:0:\nstaff:x:50:app\n60:x:61:\nnone:x:4294967295:\n"


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("", (0, 0, "/root")),
        (":", (0, 0, "/root")),
        ("root", (0, 0, "/root")),
        ("root:", (0, 0, "/root")),
        ("0:0", (0, 0, "/root")),
        (":1", (0, 1, "/root")),
        ("app", (123, 456, "/srv/app")),
        ("app:staff", (123, 50, "/srv/app")),
        ("123", (123, 456, "/srv/app")),
        ("99", (99, 0, "/")),
        ("00099:0098", (99, 98, "/")),
        ("7", (70, 71, "/seven")),
        ("99:60", (99, 61, "/")),
        ("relative", (8, 8, "/")),
        ("odd", (9, 9, "/")),
        ("65535:65535", (65535, 65535, "/")),
    ],
)
@pytest.mark.attack(12, 74)
def test_a_user_is_looked_up_in_the_image(user: str, found: tuple[int, int, str]) -> None:
    assert find_user(PASSWD, GROUP, user, 65536)[:3] == found


@pytest.mark.parametrize("ids", [65536, 0])
@pytest.mark.parametrize(
    "user",
    [
        "nobody-here",
        "letters",
        "minus",
        "none",
        "short",
        "app:none-such",
        "app:none",
        "app:staff:x",
        "-1",
        "+1",
        " 0",
        "0 ",
        "0\n",
        "0x10",
        "1e3",
        "\u0661",
        "../root",
        "4294967295",
        "0:4294967295",
        "4294967296",
        "99999999999",
    ],
)
@pytest.mark.attack(12, 74)
def test_a_user_who_cannot_be_is_refused(user: str, ids: int) -> None:
    with pytest.raises(Invalid, match="is to run as") as refused:
        find_user(PASSWD, GROUP, user, ids)

    assert refused.value.code == "bad_image"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("term", 15),
        ("15", 15),
        ("SIGKILL", 9),
        ("64", 64),
        ("SIGRTMIN", signal.SIGRTMIN),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMAX-1", signal.SIGRTMAX - 1),
    ],
)
def test_a_signal_has_several_names(text: str, number: int) -> None:
    assert parse_signal(text) == number
    assert parse_signal(signal_name(number)) == number


@pytest.mark.parametrize(
    "text",
    ["", "0", "65", "-1", "100", "SIG", "SIGSIGTERM", "TERM ", "RTMIN+31", "SIGRTMAX-31", "\u0661"],
)
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no signal"):
        parse_signal(text)
