"""Layers of anything, one above the other: the tree on the disk is that of the model, or both refuse.

The same layers on every run; `EXAMPLES=20000` tries so many others.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from archive_bench import read
from archives import Entry, directory, entry, hard_link, link, packed
from hostile_archives import Found
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from layer_model import Node, RefusedError, Step, Tree, applied

from sandboxd.isolation import layers, unpack
from sandboxd.isolation.protocol import Layer
from sandboxd.isolation.tar import BadArchive

EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
# Each name is mostly of one kind: with fewer of them, and of any kind, nearly every layer would be refused.
PARENTS = st.lists(st.sampled_from(["d", "d", "e", "l"]), max_size=2).map(tuple)


def paths(*names: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.builds(lambda parent, name: (*parent, name), PARENTS, st.sampled_from(names))


ANY = paths("d", "e", "f", "g", "l")
TARGETS = st.builds(
    lambda start, path: start + "/".join(path),
    st.sampled_from(["", "/", "../", "../../", "./", "d/../"]),
    ANY | st.just(("d",)),
)
STEPS = st.one_of(
    st.builds(
        Step,
        st.just("file"),
        paths("f", "f", "g", "d"),
        st.text("xyz", max_size=3),
        st.sampled_from([0o644, 0]),
    ),
    st.builds(
        Step, st.just("directory"), paths("d", "e"), st.just(""), st.sampled_from([0o755, 0o711])
    ),
    st.builds(Step, st.just("link"), paths("l", "l", "f", "d"), TARGETS),
    st.builds(Step, st.just("hard link"), paths("f", "g"), paths("f", "g", "l").map("/".join)),
)
WHITEOUTS = st.builds(
    Step,
    st.just("file"),
    paths(".wh.d", ".wh.f", ".wh.l", ".wh..wh..opq", ".wh..wh..opq", ".wh..wh.aufs"),
)
LOWER = st.lists(STEPS, max_size=8)
UPPER = st.lists(STEPS | WHITEOUTS, max_size=8)


def through_link(target: str) -> list[Step]:
    return [Step("directory", ("d",)), Step("directory", ("e",)), Step("link", ("d", "l"), target)]


@settings(
    max_examples=EXAMPLES or 400,
    deadline=None,
    database=None,
    derandomize=not EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(LOWER, UPPER)
# What chance finds too seldom: links below the root that lead elsewhere in it, and a file through them.
@example(through_link("/e"), [Step("file", ("d", "l", "f"))])
@example(through_link("../../e"), [Step("file", ("d", "l", "f"))])
@example(through_link("../e/../d"), [Step("file", ("d", "l", "f"))])
@pytest.mark.attack(61, 62, 63)
def test_two_layers_make_the_tree_of_the_specification(
    lower: Sequence[Step], upper: Sequence[Step]
) -> None:
    with tempfile.TemporaryDirectory(prefix="sandboxd-model-", dir="/dev/shm") as directory:
        root = Path(directory)
        tree: Tree = {}
        for steps in (lower, upper):
            try:
                tree = applied(tree, steps)
            except RefusedError:
                with pytest.raises(BadArchive):
                    apply(root, steps)
                break
            apply(root, steps)
            assert dict(read(root)) == {"/".join(path): as_read(of) for path, of in tree.items()}
        unpack.empty(str(root))


def apply(root: Path, steps: Sequence[Step]) -> None:
    """By the real applier, of which the directory is the root."""
    archive = packed(*map(as_entry, steps))
    request = Layer(
        most_bytes=10**6,
        most_entries=1000,
        id_count=0,
        has_lower=True,
        diff_id=f"sha256:{hashlib.sha256(archive).hexdigest()}",
    )
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.write(archive)
        file.flush()
        layers.apply(file.fileno(), str(root), request)


def as_entry(step: Step) -> Entry:
    name = "/".join(step.path)
    match step.kind:
        case "directory":
            return directory(name, mode=step.mode)
        case "link":
            return link(name, step.content)
        case "hard link":
            return hard_link(name, step.content)
        case _:
            return entry(name, step.content.encode(), mode=step.mode)


def as_read(node: Node) -> Found:
    return node.kind, None if node.kind == "directory" else node.content, node.mode
