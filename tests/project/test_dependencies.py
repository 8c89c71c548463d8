"""What the code imports is what pyproject.toml names: nothing comes only by way of something else."""

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TREE = Path(__file__).parents[2]
PROJECT = tomllib.loads((TREE / "pyproject.toml").read_text())
SERVICE = {canonicalize_name(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
DEVELOPMENT = {
    canonicalize_name(Requirement(text).name) for text in PROJECT["dependency-groups"]["dev"]
}

DEBIAN = {"docker"}
"""What one program of the bench needs, which runs with Debian's own Python."""
USES = {"bench": "tests"}
"""A folder whose modules another uses: services and registries are the same in both."""


def imported(folder: str) -> set[str]:
    """Top-level names of other people's modules that the files below a folder import."""
    names: set[str] = set()
    folders = [TREE / each for each in (folder, USES.get(folder)) if each]
    own = {path.stem for each in folders for path in each.rglob("*.py")} | {"sandboxd"}
    for path in (TREE / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - own - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("folder", "named"),
    [
        ("sandboxd", SERVICE),
        ("migrations", SERVICE),
        ("tests", SERVICE | DEVELOPMENT),
        ("bench", SERVICE | DEVELOPMENT | DEBIAN),
    ],
)
def test_every_import_is_of_a_dependency_that_is_named(folder: str, named: set[str]) -> None:
    distributions = importlib.metadata.packages_distributions()
    # What is not installed (an optional tool of one test) is judged by its own name.
    by_import = {
        name: {canonicalize_name(each) for each in distributions.get(name, [name])}
        for name in imported(folder)
    }

    assert {name: found for name, found in by_import.items() if not found & named} == {}
