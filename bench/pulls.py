"""How long a pull takes next to `skopeo copy` and `umoci unpack` of the same image in the same run, and a sandbox of 20 layers next to one of 1.

    python bench/pulls.py [--rounds 5] [--starts 200] [--megabytes 200]

Files of this machine's /usr are made an image of several layers, which Debian's docker-registry serves on loopback. Both sides take turns, each with an empty
store; ours ends when all would outlast a power cut. Then sandboxes of an image of 1 and of one of 20 layers are built and run `/bin/true`, in turns; none is parked.
Run it as the service's user.
"""

import argparse
import asyncio
import gzip
import io
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

for part in ("tests", "tests/images"):
    sys.path.insert(0, str(Path(__file__).parent.parent / part))

from image_bench import ImageBench, an_image_bench
from pulls import fetch
from registries import Registry, a_registry, make_image
from sandbox_bench import a_bench, run_in

SOURCES = ("/usr/lib/python3", "/usr/lib/python3.11", "/usr/share/perl", "/usr/lib/git-core")
SOURCES += ("/usr/lib/x86_64-linux-gnu", "/usr/bin", "/usr/share")
LAYERS = 6


def main() -> None:
    """Pull in turns, start in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--megabytes", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandboxd-bench-", dir="/var/tmp") as directory:
        base = Path(directory)
        with a_registry(base) as registry, a_bench() as bench:
            layers = list(files_of_this_machine(arguments.megabytes * 10**6))
            plain = sum(len(gzip.decompress(layer)) for layer in layers)
            packed = sum(map(len, layers))
            print(f"{len(layers)} layers, {packed / 1e6:.0f} MB, unpacked {plain / 1e6:.0f} MB")
            reference = registry.push(make_image(*layers))
            (base / "ours").mkdir()
            with an_image_bench(bench, base / "ours") as images:
                compare_pulls(images, reference, base, arguments.rounds)
                compare_starts(images, registry, arguments.starts)


def files_of_this_machine(most_bytes: int) -> Iterator[bytes]:
    """Gzipped layers: each has files of its own, changes some of the one below, and hides one of its directories."""
    paths = [path for source in SOURCES for path in sorted(Path(source).rglob("*"))]
    files, size = [], 0
    for path in paths:
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            files.append(path)
            size += path.stat().st_size
            if size > most_bytes:
                break
    share = len(files) // LAYERS + 1
    for number in range(LAYERS):
        written = io.BytesIO()
        own = files[number * share : (number + 1) * share]
        with tarfile.open(fileobj=written, mode="w") as archive:
            changed = files[(number - 1) * share :][:20] if number else []
            for path in (*own, *changed):
                archive.add(path, str(path)[1:], filter=of_root)
            if number:
                hidden = files[(number - 1) * share + 50].parent
                archive.addfile(tarfile.TarInfo(f"{str(hidden.parent)[1:]}/.wh.{hidden.name}"))
        yield gzip.compress(written.getvalue(), 6)


def of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    return member


def compare_pulls(images: ImageBench, reference: str, base: Path, rounds: int) -> None:
    def ours() -> None:
        fetch(images, reference)

    def theirs() -> None:
        environment = {**os.environ, "HOME": str(base)}
        copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"]
        copy += [f"docker://{reference}", f"oci:{base}/layout:1"]
        unpack = ["umoci", "unpack", "--rootless", "--image", f"{base}/layout:1", f"{base}/bundle"]
        for words in (copy, unpack):
            subprocess.run(words, check=True, capture_output=True, env=environment)

    taken: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        taken["theirs"].append(seconds(theirs))
        subprocess.run(["chmod", "-R", "u+rwX", base / "bundle"], check=True)
        for name in ("layout", "bundle"):
            shutil.rmtree(base / name)
        taken["ours"].append(seconds(ours))
        images.bench.do(images.images.remove(reference))
    for side, each in taken.items():
        print(
            f"{side:8} p50 {statistics.median(each):6.2f} s   ({min(each):.2f} to {max(each):.2f})"
        )
    ratios = [ours / theirs for ours, theirs in zip(taken["ours"], taken["theirs"], strict=True)]
    print(
        f"ratio of neighbours, p50 {statistics.median(ratios):.2f}   ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def seconds(work: Callable[[], None]) -> float:
    os.sync()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare_starts(images: ImageBench, registry: Registry, starts: int) -> None:
    references = {}
    for count in (1, 20):
        layers = [tiny_layer(number) for number in range(count)]
        references[count] = registry.push(make_image(*layers), tag=f"of-{count}")
        fetch(images, references[count])
    taken: dict[int, list[float]] = {count: [] for count in references}

    async def one(reference: str) -> float:
        began = time.perf_counter()
        image = await images.images.resolve(reference)
        binds = tuple((os.path.realpath(path), path) for path in ("/usr", "/lib", "/lib64"))
        shape = {"rootfs": image.rootfs, "below": image.below, "binds": binds}
        async with images.bench.sandbox(uid=0, gid=0, **shape) as made:
            await run_in(made, "/usr/bin/true")
            return time.perf_counter() - began

    async def all_of_them() -> None:
        for _ in range(starts):
            for count, reference in references.items():
                taken[count].append(await one(reference))
                await asyncio.sleep(0.01)

    images.bench.runner.run(all_of_them())
    for count, each in taken.items():
        tenths = statistics.quantiles(each, n=10)
        print(
            f"{count:2} layers: a sandbox built and /bin/true, p50 {1000 * statistics.median(each):.1f} ms, p90 {1000 * tenths[-1]:.1f} ms"
        )


def tiny_layer(number: int) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        member = tarfile.TarInfo(f"file-{number}")
        archive.addfile(member)
    return gzip.compress(written.getvalue())


if __name__ == "__main__":
    main()
