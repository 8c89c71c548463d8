"""What the project promises about its own shape."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def test_imports_point_down() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-cache", "--no-logo"], cwd=TREE, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", package_inits(), ids=lambda path: str(path.parent.relative_to(TREE))
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


def test_the_wheel_has_the_code_the_migrations_and_the_licence(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=TREE,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()

    assert "sandboxd/__main__.py" in names
    assert "sandboxd/py.typed" in names
    assert "sandboxd/migrations/env.py" in names
    assert "sandboxd/migrations/script.py.mako" in names
    assert [name for name in names if re.match(r"sandboxd/migrations/versions/\d.*\.py", name)]
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert not [name for name in names if name.startswith("tests/") or "__pycache__" in name]


def test_no_file_names_a_home_directory_of_a_developer() -> None:
    home = re.compile(r"/root/\.\w|/home/[a-z]\w*/\w")
    found = [
        f"{path.relative_to(TREE)}: {match[0]}"
        for path in texts()
        if path != Path(__file__) and path.suffix != ".lock" and "tests" not in path.parts
        for match in home.finditer(path.read_text(errors="replace"))
    ]

    assert found == []


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


def test_the_documentation_lists_every_setting() -> None:
    page = (TREE / "docs" / "configuration.md").read_text()

    assert [key for key in fields() if f"`{key}`" not in page] == []
