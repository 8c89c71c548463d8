"""Good inputs for each target, from which fuzzers make bad ones; and the hypothesis strategies that build such inputs."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from typing import Any

import zstandard
from hypothesis import strategies as st

_JOB: dict[str, Any] = {
    "image": "team/tools:1.2",
    "command": ["sh", "-c", "echo hello"],
    "args": ["--flag", "é"],
    "stdin": {"base64": "aGVsbG8="},
    "env": {"A": "b", "PATH": "/bin"},
    "workdir": "/work",
    "user": "1000:1000",
    "network": {"mode": "none"},
    "limits": {
        "cpus": "500m",
        "memory": "64Mi",
        "pids": 16,
        "disk": "1.5M",
        "wall_seconds": 1.5,
        "cpu_seconds": 1,
        "output_bytes": 1000,
        "open_files": 64,
        "idle_seconds": 1,
        "network_bytes": "1Gi",
        "swap": 0,
        "io_bytes_per_second": "1Mi",
        "queue_seconds": 60,
    },
    "require": {"memory": "cgroup"},
    "priority": 1,
    "cpuset": "0-1,3",
    "stop_signal": "SIGRTMIN+3",
    "labels": {"team/name": "x"},
    "retry": {"max_attempts": 2},
    "ttl_seconds": 3600,
}

_STEPS: dict[str, Any] = {
    "image": "host",
    "steps": [
        {"name": "compile", "command": ["cc", "a.c"], "limits": {"wall_seconds": 5}, "env": {}},
        {
            "command": ["./a.out"],
            "args": ["x"],
            "workdir": "/work",
            "continue_on_failure": True,
            "inputs": [
                {"name": "one", "stdin": "1", "expected": "2"},
                {"args": ["y"], "env": {"A": "b"}, "expected": {"base64": "Mg=="}},
            ],
            "checker": {"comparison": "floats", "tolerance": 1e-6},
            "stop": "never",
        },
    ],
    "network": {
        "mode": "egress",
        "allow": [
            "public",
            "pypi.org:443",
            "*.example.org",
            "198.51.100.0/24:5432",
            "[2001:db8::]/32",
        ],
    },
    "files": [
        {"path": "a.c", "content": "int main;", "mode": "0644"},
        {"path": "/tmp/d", "directory": True},
    ],
    "outputs": ["*.o", "/tmp/**"],
}

_ENTRIES: list[tuple[list[Any], list[bytes]]] = [
    (["/work/a", "file", 0o644, ""], [b"hello", b"again"]),
    (["/work/é", "directory", 0o755, ""], []),
    (["/work/link", "passed_over", 0, "symlink"], []),
]

_MESSAGES: list[list[Any]] = [
    ["Ready"],
    ["Failed", "pivot_root", "EPERM"],
    ["Started", 1, 1.25],
    ["StartedInTerminal", 1, 1.25],
    ["NotStarted", 1, ["command", 2]],
    ["NotPlaced", 3, 13],
    ["Exited", 1, [2.5, 0, None, 0.1, 0.2, 1048576, True]],
    ["Exited", 1, [2.5, None, 9, 0.1, 0.2, 1048576, False]],
    ["Done", 3, 4096],
    ["Unshared"],
    ["LauncherReady", True],
    ["Created", 7, 4711],
    ["CreateFailed", 7, "clone3", "EAGAIN"],
]


def seeds_of(target: str) -> list[bytes]:  # noqa: C901 (a table)
    """Inputs that a target takes without a complaint, or nearly so."""
    match target:
        case "hear_init":
            encoded = [json.dumps(message).encode() for message in _MESSAGES]
            return [start + each for start in (b"\0i", b"\x0ci") for each in encoded]
        case "hear_launcher":
            encoded = [json.dumps(message).encode() for message in _MESSAGES]
            return [b"\2i" + each for each in encoded] + [b"\6" + each for each in encoded]
        case "hear_entries":
            return [_counted(*entry) for entry in _ENTRIES] + [
                b"".join(_counted(*each) for each in _ENTRIES)
            ]
        case "compare":
            return [b"a 1.0\n b\n\0a 1.0000001\nb", b"1e999 nan\n\0inf -nan", b"\xff\n\0\xfe\r\n"]
        case "job_request":
            least = {"image": "host", "command": ["true"], "stdin": "text", "user": "0"}
            return [json.dumps(job).encode() for job in (_JOB, _STEPS, least)]
        case "words":
            return [word.encode() for word in _WORDS]
        case "query":
            return [each.encode() for each in _QUERIES]
        case "request_headers":
            return [each.encode() for each in _HEADERS]
        case "archive":
            twice = [gzip.compress(tar) + gzip.compress(tar) + b"rest" for tar in _archives()]
            return twice + [compress(tar) for tar in _archives() for compress in _COMPRESSIONS]
        case "layer":
            compressions = (bytes, gzip.compress, zstandard.ZstdCompressor().compress)
            return [compress(tar) for tar in _archives() for compress in compressions]
        case "registry_answer":
            return [json.dumps(each).encode() for each in _DOCUMENTS] + [
                b'Bearer realm="https://a/b?c",service=d, Basic realm="e\\"f"'
            ]
        case "image_archive":
            return [
                _archive(form, _OF_IMAGES)
                for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
            ]
        case "uploaded_archive":
            return _archives()
        case "form":
            head = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
            parts = head % (b"job", b"{}") + head % (b"a/b", b"\r\n--x") + head % (b"c", b"")
            return [bytes([size]) + parts + b"--b--\r\n" for size in (0, 6, 255)]
    raise LookupError(target)


_WORDS = (
    *("128Mi", "1.5G", "500m", "9223372036854775807", "127.0.0.1:8080", "[::1]:1", "unix:/run/s"),
    *(
        "pypi.org:443",
        "*.example.org",
        "public.",
        "10.0.0.1.",
        "198.51.100.0/24:5432",
        "[2001:db8::1]:53",
        "2001:db8::/32",
    ),
    *("team/tools:1.2", f"localhost:5000/a/b@sha256:{'0' * 64}", "job_06f8k0000000000000000000ab"),
    "am9iXzA2ZjhrMDAwMDAwMDAwMDAwMDAwMDAwMGFi",
    "am9iXzA2ZjhrMDAwMDAwMDAwMDAwMDAwMDAwMGFi=",
)
_QUERIES = (
    "state=queued,running&limit=10&label.team=x&since=2026-01-31T12:00:00%2B01:00",
    "follow&stream=stdout&wait=1.5&until=1700000000",
    "cursor=am9iXzA2ZjhrMDAwMDAwMDAwMDAwMDAwMDAwMGFi",
)
_HEADERS = (
    "wait=10, respond-async",
    '"a-key"',
    f"00-{'a' * 32}-{'b' * 16}-01",
    'W/"a", "b"',
    "application/json;q=0.5, text/*;q=1, */*;q=0.1",
    "bytes=10-20",
    "bytes=-5",
)
_LAYER = {
    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
    "digest": "sha256:" + "1" * 64,
    "size": 1000,
}
_MANIFEST = _LAYER | {
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "platform": {"os": "linux", "architecture": "amd64", "variant": "v1"},
    "annotations": {"a": "b"},
}
_DOCUMENTS: tuple[dict[str, Any], ...] = (
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _LAYER | {"mediaType": "application/vnd.oci.image.config.v1+json"},
        "layers": [_LAYER, _LAYER],
    },
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [_MANIFEST, _MANIFEST],
    },
    {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "2" * 64]},
        "config": {
            "User": "app:staff",
            "Env": ["A=b", "PATH=/bin"],
            "Entrypoint": ["/run"],
            "Cmd": ["x"],
            "WorkingDir": "/srv/../app",
            "StopSignal": "SIGRTMIN+3",
        },
    },
)
_COMPRESSIONS = (bytes, gzip.compress, bz2.compress, lzma.compress)


def _archives() -> list[bytes]:
    return [
        _archive(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]


_EACH_KIND = (
    ("directory", tarfile.DIRTYPE, ""),
    ("directory/file", tarfile.REGTYPE, ""),
    ("link", tarfile.SYMTYPE, "../../canary"),
    ("hard", tarfile.LNKTYPE, "directory/file"),
    ("way", tarfile.SYMTYPE, "directory"),
    ("way/other", tarfile.REGTYPE, ""),
    ("pipe", tarfile.FIFOTYPE, ""),
    ("null", tarfile.CHRTYPE, ""),
    ("directory/.wh.file", tarfile.REGTYPE, ""),
    ("directory/inner/.wh..wh..opq", tarfile.REGTYPE, ""),
    ("n" * 90 + "/" + "m" * 90, tarfile.REGTYPE, ""),
)
_OF_IMAGES = (
    ("./index.json", tarfile.REGTYPE, ""),
    ("blobs/sha256/", tarfile.DIRTYPE, ""),
    ("1/layer.tar", tarfile.REGTYPE, ""),
    ("2/layer.tar", tarfile.SYMTYPE, "../1/layer.tar"),
    ("n" * 90 + "/" + "m" * 90, tarfile.REGTYPE, ""),
)


def _archive(form: int, entries: tuple[tuple[str, bytes, str], ...] = _EACH_KIND) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        for name, kind, target in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, target, 0o755
            entry.size = 5 if kind == tarfile.REGTYPE else 0
            if form == tarfile.PAX_FORMAT:
                entry.pax_headers = {"comment": "é", "SCHILY.xattr.user.a": "b"}
            tar.addfile(entry, io.BytesIO(b"hello"))
    return packed.getvalue()


def _counted(header: list[Any], pieces: list[bytes]) -> bytes:
    """An entry as init writes it: each part with its length before it, a file with an empty one at its end."""
    parts = [json.dumps(header).encode(), *pieces] + ([b""] if header[1] == "file" else [])
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


# What hypothesis builds

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([*_WORDS, "", "..", "/", "a\0b", "-1", "4294967296", "1000:", "\u0661", "é"])
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
_FIELD_NAMES = st.sampled_from(
    [*_JOB, *_STEPS, *_STEPS["steps"][1], *_JOB["limits"], "base64", "~", "a/b"]
) | st.text(max_size=5)


@st.composite
def _bent(draw: st.DrawFn, good: bytes) -> bytes:
    """A good input of which a few places were changed, taken away, repeated or cut."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 64)))
        content[start:end] = draw(
            st.binary(max_size=16)
            | st.just(bytes(content[start:end] * 2))
            | st.sampled_from(
                [b"0" * 12, b"\xff" * 12, b"\x80" + b"\0" * 11, b"7" * 11, b"\0" * 512]
            )
        )
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


@st.composite
def _bent_job(draw: st.DrawFn) -> bytes:
    """The good job with fields of other types, missing and unknown ones; also as JSON that no writer writes."""
    good = draw(st.sampled_from([_JOB, _STEPS, _JOB | _STEPS]))
    job = {name: value for name, value in good.items() if draw(st.integers(0, 5))}
    if "steps" in job and draw(st.booleans()):
        step = draw(st.dictionaries(_FIELD_NAMES, _TREES, max_size=4))
        job["steps"] = [*job["steps"], job["steps"][1] | step]
    job.update(draw(st.dictionaries(_FIELD_NAMES, _TREES, max_size=4)))
    if draw(st.booleans()):
        job["limits"] = draw(st.dictionaries(_FIELD_NAMES, _TREES, max_size=6))
    return json.dumps(job, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


def strategy_for(target: str) -> st.SearchStrategy[bytes]:
    """Noise, good inputs bent, and for what is JSON any tree."""
    bent = st.sampled_from(seeds_of(target)).flatmap(_bent)
    noise = st.binary(max_size=600)
    trees = _TREES.map(lambda tree: json.dumps(tree).encode())
    match target:
        case "hear_init" | "hear_launcher":
            starts = st.sampled_from([b"\0i", b"\3i", b"\x0ci", b"\x0fi", b"\4", b"\7", b"\0m"])
            named = st.sampled_from([message[0] for message in _MESSAGES])
            fields = st.lists(_TREES, max_size=8)
            calls = st.builds(lambda name, rest: json.dumps([name, *rest]).encode(), named, fields)
            return noise | bent | st.builds(bytes.__add__, starts, trees | calls)
        case "job_request":
            return noise | bent | trees | _bent_job()
        case "archive" | "layer":
            return noise | bent
        case "registry_answer":
            return noise | bent | trees
    return noise | bent | st.text(max_size=80).map(lambda text: text.encode("utf-8"))
