"""A pull that is killed at any of its steps leaves a store that the next one completes, and that `prune` leaves clean.

The process is killed by itself, before its n-th step of those that the interpreter tells of (PEP 578): locks, names that come and
go, files that are opened to be written, messages to launcher and sandboxes. Nothing in what is tested knows of that.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from archives import directory, entry, hard_link, packed
from image_bench import ImageBench
from pulls import blobs_of, fetch, nothing_was_kept
from registries import Stub, digest_of, make_image
from running_service import byte_code
from waiting import TIME_FACTOR, wait_for

from sandboxd.images.store.pruning import Pruned

pytestmark = [pytest.mark.host, pytest.mark.thorough]

POINTS = 30
LAYERS = (
    packed(directory("d"), entry("d/one", b"1"), entry("d/two", b"2"), entry("d/three", b"3")),
    packed(entry("d/.wh.one"), hard_link("again", "d/two"), entry("big", bytes(2**20))),
    packed(directory("d"), entry("d/.wh..wh..opq"), entry("d/four", b"4")),
)
FILES = {"d/four", "again", "big"}
PULL = """\
import asyncio, os, signal, sys
from pathlib import Path
from image_bench import Nowhere
from sandboxd.images.catalogue import Images
from sandboxd.images.pulling import pull
from sandboxd.images.documents.references import parse_reference
from sandboxd.images.registries.terms import Access
from sandboxd.images.registries.transport import Transport
from sandboxd.isolation import idmap
from sandboxd.isolation.launcher_client import Launcher

ALWAYS = {"fcntl.flock", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "socket.sendmsg"}
base, reference, last = Path(sys.argv[1]), parse_reference(sys.argv[2]), int(sys.argv[3])
steps = 0

def count(event, arguments):
    global steps
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in ALWAYS or writes and str(arguments[0]).startswith(str(base)):
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

async def main():
    launcher = Launcher(stage=base / "stage-other", ids=idmap.find_range())
    await launcher.start()
    images = Images(base / "images", base / f"host-{os.getpid()}", launcher, Nowhere)
    transport = Transport({reference.registry: Access(insecure=True)})
    sys.addaudithook(count)
    await pull(images, transport, reference, lambda _: None)

asyncio.run(main())
print(steps)
"""


def pull_until(images: ImageBench, reference: str, step: int) -> "subprocess.CompletedProcess[str]":
    here = str(Path(__file__).parent)
    return subprocess.run(
        [sys.executable, "-c", PULL, str(images.directory), reference, str(step)],
        env={"PYTHONPATH": os.pathsep.join([here, *sys.path]), **byte_code()},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120 * TIME_FACTOR,
        check=False,
    )


def pruned(images: ImageBench) -> Pruned:
    """What is left when the sandboxes of the other process are gone, a moment after it."""
    done: list[Pruned] = []

    def clean() -> bool:
        done.append(images.bench.do(images.images.prune()))
        return not (images.left_over() or list((images.store / "making").iterdir()))

    wait_for(clean, "nothing half-done is left")
    assert done[-1].remaining == {}
    return done[-1]


@pytest.mark.timeout(900)
@pytest.mark.attack(73)
def test_a_pull_that_is_killed_at_any_step_is_completed_by_the_next(
    stub: Stub, images: ImageBench
) -> None:
    made = make_image(*LAYERS)
    reference = stub.offer(made)
    (images.directory / "stage-other").mkdir()
    whole = pull_until(images, reference, 0)
    assert whole.returncode == 0
    images.bench.do(images.images.remove(reference))
    steps = int(whole.stdout)
    assert steps > 2 * POINTS
    wanted = {digest_of(made.manifest), *made.blobs}
    references = images.store / "references"

    for point in range(POINTS):
        killed = pull_until(images, reference, 1 + point * (steps - 1) // (POINTS - 1))
        assert killed.returncode in (-signal.SIGKILL, 0), point
        if point % 2:  # What is left serves the next pull; else nothing is left to it.
            pruned(images)
            # The name comes last: with it all is there, without it nothing.
            named = len(list(references.iterdir()))
            assert named == 1 or nothing_was_kept(images), point
            assert len(images.images.trees.keys()) == named * len(LAYERS), point

        fetch(images, reference)

        found = images.tree(reference)
        assert {path for path in found if found[path][0] == "file"} == FILES, point
        assert found["d/four"][4] == "4", point
        assert pruned(images) == Pruned(), point
        assert len(images.images.trees.keys()) == len(LAYERS), point
        assert {f"sha256:{name}" for name in blobs_of(images)} == wanted, point
        assert list((images.store / "oci/partial").iterdir()) == [], point
        assert len(list(references.iterdir())) == 1, point
        images.images.close()
        images.bench.do(images.images.remove(reference))
        assert images.images.trees.keys() == [], point
        assert blobs_of(images) == set(), point
