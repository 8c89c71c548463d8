"""An imported image with Python, numpy and pandas: wheels made elsewhere work behind the walls."""

import importlib.metadata
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_service import RunningService

from sandboxd.client import Client

pytestmark = pytest.mark.thorough

PACKAGES = "/opt/packages"
LEFT_OUT = re.compile(r"/(tests?|idlelib|tkinter|lib2to3|ensurepip|__pycache__|config-[^/]*)/|\.a$")


@pytest.fixture(scope="module")
def science(real_service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an image with this interpreter and the two packages."""
    archive = tmp_path_factory.mktemp("science") / "rootfs.tar"
    with tarfile.open(archive, "w") as tar:
        for inside, outside in sorted(files_of_image()):
            tar.add(outside.resolve(), inside, recursive=False)
    imported = real_service.command("images", "import", "science", str(archive))
    assert imported.returncode == 0, imported.stderr
    return "science"


def files_of_image() -> Iterator[tuple[str, Path]]:
    """(path inside, file outside) of the interpreter, its library, the packages, and the libraries that all load."""
    interpreter = Path(sys.executable).resolve()
    found = {"/usr/bin/python3": interpreter, str(interpreter): interpreter}
    library = Path(sysconfig.get_path("stdlib"))
    for path in library.rglob("*"):
        if path.is_file() and not LEFT_OUT.search(str(path)) and "site-packages" not in path.parts:
            found[str(path)] = path
    for name in ("numpy", "pandas"):
        found |= files_of_package(name)
    loaded = [path for path in found.values() if ".so" in path.name] + [interpreter]
    for path in libraries_of(loaded):
        found.setdefault(str(path), path)
    yield from found.items()


def files_of_package(name: str) -> dict[str, Path]:
    """The files of a package and of those that it requires, below `PACKAGES`."""
    distribution = importlib.metadata.distribution(name)
    found = {}
    for entry in distribution.files or ():
        path = Path(distribution.locate_file(entry))
        if ".." not in entry.parts and path.is_file() and not LEFT_OUT.search(f"/{entry}"):
            found[f"{PACKAGES}/{entry}"] = path
    for requirement in distribution.requires or ():
        if ";" not in requirement or ("extra ==" not in requirement and name != "numpy"):
            required = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert required is not None
            try:
                found |= files_of_package(required.group())
            except importlib.metadata.PackageNotFoundError:
                continue  # for another platform or version than ours
    return found


def libraries_of(programs: list[Path]) -> set[Path]:
    """Where ldd(1) finds the shared libraries that are not in the packages themselves."""
    shown = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    found = {Path(path) for path in re.findall(r"(/\S+) \(0x", shown)}
    return {path for path in found if "site-packages" not in path.parts}


def succeed(client: Client, image: str, code: str) -> str:
    job = client.run(
        ["/usr/bin/python3", "-c", code],
        image=image,
        env={"PYTHONPATH": PACKAGES, "PYTHONHOME": sys.base_prefix},
        limits={"memory": "1Gi", "pids": 128, "wall_seconds": 60, "cpus": 2},
    )
    assert job.state == "succeeded", (job.error, job.stderr.decode())
    return job.text


def test_the_interpreter_of_the_image_is_used(client: Client, science: str) -> None:
    code = "import platform, os; print(platform.python_version(), os.getuid(), os.path.exists('/home'))"

    assert succeed(client, science, code) == f"{platform.python_version()} 0 False\n"


def test_numpy_computes(client: Client, science: str) -> None:
    code = """
import numpy as np
a = np.arange(250_000, dtype=np.float64).reshape(500, 500)
print((a @ a).trace() == np.einsum("ij,ji->", a, a))
print(np.linalg.solve(np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([3.0, 5.0])).round(6))
print(np.allclose(np.fft.ifft(np.fft.fft(a[0])), a[0]), np.random.default_rng(1).random(3).shape)
"""
    assert succeed(client, science, code) == "True\n[0.8 1.4]\nTrue (3,)\n"


def test_pandas_groups_and_reads_and_writes(client: Client, science: str) -> None:
    code = """
import pandas as pd
frame = pd.DataFrame({"key": list("abab"), "value": [1, 2, 3, 4]})
print(frame.groupby("key").value.sum().to_dict())
frame.to_csv("/work/f.csv", index=False)
print(pd.read_csv("/work/f.csv").equals(frame))
print(pd.date_range("2026-01-01", periods=3, freq="D")[-1].isoformat())
"""
    assert succeed(client, science, code) == "{'a': 4, 'b': 6}\nTrue\n2026-01-03T00:00:00\n"
