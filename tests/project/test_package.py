"""What the project promises about its own shape."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from sandboxd.api.validate import MAX_QUEUE_SECONDS
from sandboxd.client import types
from sandboxd.quantities import parse_bytes
from sandboxd.quotas.limits import WIRE_NAMES
from sandboxd.settings import CEILINGS, DEFAULT_LIMITS
from sandboxd.settings_loader import fields

TREE = Path(__file__).parents[2]
SOURCES = [TREE / "sandboxd", TREE / "migrations"]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".json", ".tpl", ".txt", ".mako", ".lock", ""}
SKIPPED = {".git", "__pycache__", ".venv", ".mypy_cache", ".ruff_cache", ".hypothesis", "build"}


def texts() -> list[Path]:
    return [
        path
        for path in TREE.rglob("*")
        if path.is_file()
        and path.suffix in TEXT_SUFFIXES
        and not SKIPPED.intersection(path.relative_to(TREE).parts)
    ]


def package_inits() -> list[Path]:
    return sorted((TREE / "sandboxd").rglob("__init__.py"))


CLIENT = TREE / "sandboxd" / "client" / "__init__.py"
"""The one package whose users are other people's programs."""


def lint_imports(tree: Path) -> "subprocess.CompletedProcess[str]":
    """Check the import contracts of a tree."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_point_down() -> None:
    done = lint_imports(TREE)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path",
    [path for path in package_inits() if path != CLIENT],
    ids=lambda path: str(path.parent.relative_to(TREE)),
)
def test_a_package_init_holds_a_docstring_only(path: Path) -> None:
    tree = ast.parse(path.read_text())

    statements = tree.body[1:]
    if path.parent.name == "sandboxd":
        statements = [
            line for line in statements if not ast.unparse(line).startswith("__version__")
        ]
    assert ast.get_docstring(tree)
    assert statements == []


def test_the_client_package_gives_its_public_names_and_nothing_else() -> None:
    tree = ast.parse(CLIENT.read_text())
    imports = [line for line in tree.body[1:] if isinstance(line, ast.ImportFrom)]

    assert ast.get_docstring(tree)
    assert imports == tree.body[1:]
    assert all(alias.asname == alias.name for line in imports for alias in line.names)
    given = {alias.name for line in imports for alias in line.names}
    errors = {
        name
        for name, each in vars(types).items()
        if isinstance(each, type) and issubclass(each, types.ClientError)
    }
    assert errors | {"Client", "AsyncClient", "Job", "State", "Stream"} <= given


def build(target: str, source: Path, directory: Path) -> Path:
    """The wheel or the source archive of a tree."""
    words = [sys.executable, "-m", "hatchling", "build", "--target", target]
    subprocess.run([*words, "--directory", directory], cwd=source, capture_output=True, check=True)
    (built,) = [path for path in directory.iterdir() if path.suffix in (".whl", ".gz")]
    return built


def assert_complete(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "sandboxd/__main__.py" in names
    assert "sandboxd/py.typed" in names
    assert "sandboxd/migrations/env.py" in names
    assert "sandboxd/migrations/script.py.mako" in names
    assert [name for name in names if re.match(r"sandboxd/migrations/versions/\d.*\.py", name)]
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert [name for name in names if name.endswith("licenses/NOTICE")]
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]


def test_the_wheel_has_the_code_the_migrations_the_licence_and_the_notice(tmp_path: Path) -> None:
    assert_complete(build("wheel", TREE, tmp_path))


def test_the_source_archive_has_the_whole_tree_and_makes_the_same_wheel(tmp_path: Path) -> None:
    archive = build("sdist", TREE, tmp_path)
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", tmp_path], check=True)
    (source,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    kept = {path.relative_to(source) for path in source.rglob("*")}
    ours = {
        path.relative_to(TREE)
        for path in texts()
        if not any(part.endswith("_cache") for part in path.relative_to(TREE).parts)
    }

    assert ours - kept == set()
    assert os.access(source / ".ci" / "run", os.X_OK)
    assert not [path for path in kept if "__pycache__" in path.parts]
    (source / "sandboxd" / "COMMIT").write_text("0123abc\n")  # as a builder may, for build_info
    wheel = build("wheel", source, tmp_path / "wheel")
    assert_complete(wheel)
    assert "sandboxd/COMMIT" in zipfile.ZipFile(wheel).namelist()


RESTRICTED = {
    "starlette": "from starlette.types import Scope",
    "uvicorn": "import uvicorn",
    "sqlalchemy": "from sqlalchemy import select",
    "alembic": "from alembic import command",
    "sqlite3": "import sqlite3",
    "prometheus_client": "from prometheus_client import Counter",
    "psutil": "import psutil",
    "httpx2": "import httpx2",
    "prctl": "import prctl",
    "ctypes": "import ctypes",
}


def test_a_new_module_may_use_none_of_the_libraries_that_have_their_place(tmp_path: Path) -> None:
    shutil.copytree(TREE / "sandboxd", tmp_path / "sandboxd")
    shutil.copy(TREE / "pyproject.toml", tmp_path)
    (tmp_path / "sandboxd" / "newcomer.py").write_text("\n".join(RESTRICTED.values()) + "\n")

    found = lint_imports(tmp_path)

    assert found.returncode != 0
    told = {name for name in RESTRICTED if f"sandboxd.newcomer -> {name}" in found.stdout}
    assert told == set(RESTRICTED)


def test_no_file_names_a_home_directory_of_a_developer() -> None:
    home = re.compile(r"/root/\.\w|/home/[a-z]\w*/\w")
    found = [
        f"{path.relative_to(TREE)}: {match[0]}"
        for path in texts()
        if path != Path(__file__) and path.suffix != ".lock" and "tests" not in path.parts
        for match in home.finditer(path.read_text(errors="replace"))
    ]

    assert found == []


def test_the_list_of_changes_says_each_once() -> None:
    """Two who add to it at once bring what stood there before back."""
    entries = (TREE / "CHANGELOG.md").read_text().split("\n- ")[1:]

    assert [entry for entry, times in Counter(entries).items() if times > 1] == []


def test_every_link_inside_the_docs_leads_to_a_file() -> None:
    link = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")
    pages = [path for path in texts() if path.suffix == ".md"]
    broken = [
        f"{page.relative_to(TREE)}: {target}"
        for page in pages
        for target in link.findall(page.read_text())
        if not (page.parent / target).exists()
    ]

    assert pages
    assert broken == []


def test_the_table_of_limits_has_every_limit_with_its_default_and_ceiling() -> None:
    page = (TREE / "docs" / "api.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\w.]*) \| ([\w.]*) \|", page, re.MULTILINE)
    shown = {name: (default, ceiling) for name, default, ceiling in rows}

    for name in DEFAULT_LIMITS.__struct_fields__:
        default, ceiling = shown[WIRE_NAMES.get(name, name)]
        for cell, limits in ((default, DEFAULT_LIMITS), (ceiling, CEILINGS)):
            said = parse_bytes(cell) if "bytes" in name else float(cell)
            assert said == getattr(limits, name), name
    assert float(shown["queue_seconds"][1]) == MAX_QUEUE_SECONDS


def test_the_documentation_lists_every_setting() -> None:
    page = (TREE / "docs" / "configuration.md").read_text()

    assert [key for key in fields() if f"`{key}`" not in page] == []
