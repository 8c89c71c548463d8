"""What the tree of layers must be, as the image specification has it, in the plainest Python: paths to what they are, nothing on a disk.

https://github.com/opencontainers/image-spec/blob/main/layer.md
"""

from collections.abc import Sequence
from typing import NamedTuple

Path = tuple[str, ...]


class Node(NamedTuple):
    kind: str
    """directory, file, link."""
    content: str
    """Or target."""
    mode: int | None


class Step(NamedTuple):
    """One entry of a layer."""

    kind: str
    """Also hard link and whiteout: the name says which."""
    path: Path
    content: str = ""
    mode: int = 0o755


Tree = dict[Path, Node]
DIRECTORY = Node("directory", "", 0o755)


class RefusedError(Exception):
    """The layer cannot be applied."""


class _MissingError(Exception):
    """Nothing is there."""


def applied(lower: Tree, layer: Sequence[Step]) -> Tree:
    """Raises RefusedError."""
    tree = dict(lower)
    for step in layer:
        if step.path[-1].startswith(".wh."):
            _hide(tree, step.path[:-1], step.path[-1])
    for step in layer:
        if not any(part.startswith(".wh.") for part in step.path):
            _put(tree, step)
    return tree


def _hide(tree: Tree, parent: Path, name: str) -> None:
    if any(tree.get(parent[:depth], DIRECTORY).kind != "directory" for depth in _depths(parent)):
        return
    if name == ".wh..wh..opq":
        for path in [path for path in tree if path[:-1] == parent and path]:
            _remove(tree, path)
    else:
        _remove(tree, (*parent, name.removeprefix(".wh.")))


def _put(tree: Tree, step: Step) -> None:
    parent = _made(tree, step.path[:-1])
    path = (*parent, step.path[-1])
    if step.kind == "directory":
        if path in tree and tree[path].kind != "directory":
            _remove(tree, path)
        tree[path] = Node("directory", "", step.mode)
        return
    _remove(tree, path)
    if step.kind == "hard link":
        tree[path] = _linked(tree, tuple(step.content.split("/")))
    else:
        tree[path] = Node(step.kind, step.content, None if step.kind == "link" else step.mode)


def _linked(tree: Tree, target: Path) -> Node:
    try:
        found = tree.get((*_resolved(tree, target[:-1]), target[-1]))
    except _MissingError:
        found = None
    if found is None or found.kind == "directory":
        raise RefusedError
    return found


def _made(tree: Tree, parts: Path) -> Path:
    """The directory that is meant, by links inside the tree; what is missing is made."""
    current: Path = ()
    for depth in _depths(parts):
        try:
            current = _resolved(tree, parts[:depth])
        except _MissingError:
            made = (*current, parts[depth - 1])
            if made in tree:
                raise RefusedError from None  # A link that leads nowhere.
            tree[made] = DIRECTORY
            current = made
    return current


def _resolved(tree: Tree, parts: Path) -> Path:
    current: Path = ()
    left = list(parts)
    links = 0
    while left:
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            current = current[:-1]
            continue
        found = tree.get((*current, part))
        if found is None:
            raise _MissingError
        if found.kind == "file":
            raise RefusedError
        if found.kind == "directory":
            current = (*current, part)
            continue
        links += 1
        if links > 40:
            raise RefusedError
        if found.content.startswith("/"):
            current = ()
        left[:0] = found.content.split("/")
    return current


def _depths(parts: Path) -> range:
    return range(1, len(parts) + 1)


def _remove(tree: Tree, path: Path) -> None:
    for each in [each for each in tree if each[: len(path)] == path]:
        del tree[each]
