"""Commands that use more than they may, or leave something behind: what matters is how their job ends.

Like `program`, one of them runs inside a sandbox as `python3 -I - NAME`, read from standard input. Should nothing stop them,
they are over after seconds, and nothing of them is left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

try:
    import ctypes
except ImportError:  # a minimal Python
    ctypes = None  # type: ignore[assignment]

STAY_SECONDS = 30
SPIN_SECONDS = 3
"""Of processor time: on a busy machine it takes longer."""
PLACES = ("/tmp", "/dev/shm", "/dev/mqueue", ".", os.path.expanduser("~"))  # noqa: S108 (inside)


def fill_memory() -> None:
    """256 MiB, touched: no more, should nothing stop it."""
    pieces = [bytearray(os.urandom(4096)) * 256 for _ in range(256)]
    print(f"filled {len(pieces)} MiB", flush=True)


def fill_shared_memory() -> None:
    """60 MiB in a file of /dev/shm, which nobody has mapped: memory all the same."""
    path = f"/dev/shm/attack-{os.getpid()}"  # noqa: S108 (inside)
    with open(path, "wb", buffering=0) as file:
        os.unlink(path)
        file.writelines(b"\1" * 2**20 for _ in range(60))
    print("filled 60 MiB", flush=True)


def flood() -> None:
    """4 MiB of one line without an end, then the end."""
    for _ in range(64):
        os.write(1, b"A" * 2**16)


def leave_processes() -> None:
    """End at once, and leave processes that are detached, ignore what they can, and keep the output open for a while."""
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                ignore_signals()
                time.sleep(STAY_SECONDS)
            os._exit(0)
    print("left", flush=True)


def outstay() -> None:
    """Ignore every signal that can be ignored, have a stopped child, and stay."""
    ignore_signals()
    if os.fork() == 0:
        os.setsid()
        if ctypes is not None:
            set_parent_death_signal = (
                1  # prctl(2): a stopped process ends with its parent, whatever else fails
            )
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    print("staying", flush=True)
    time.sleep(STAY_SECONDS)


def ignore_signals() -> None:
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue


def spin_elsewhere() -> None:
    """Wait, while a detached grandchild uses the processor."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.close(reading)
            while time.process_time() < SPIN_SECONDS:
                pass
            os.write(writing, b"!")
        os._exit(0)
    os.close(writing)
    survived = os.read(reading, 1)
    print("it went on" if survived else "it was killed", flush=True)


def leave_marks(mark: str) -> None:
    """What a next job might find: files, shared memory of both kinds, a message queue."""
    for directory in PLACES:
        try:
            with open(f"{directory}/{mark}", "w") as file:
                file.write(mark)
        except OSError:
            continue
    if ctypes is not None:
        create, for_all = 0o1000, 0o666
        ctypes.CDLL(None).shmget(segment_key(mark), 4096, create | for_all)
    print("left", flush=True)


def find_marks(mark: str) -> None:
    """Report in the way of `program`. Marks of a job that could leave some are removed."""
    found = []
    for directory in PLACES:
        if os.path.exists(f"{directory}/{mark}"):
            found.append(f"{directory}/{mark}")
            os.unlink(found[-1])
    if ctypes is not None:
        library = ctypes.CDLL(None)
        segment = library.shmget(segment_key(mark), 0, 0)
        if segment >= 0:
            found.append("a System V segment")
            remove = 0
            library.shmctl(segment, remove, None)
    seen = "found " + ", ".join(found) if found else "nothing found"
    verdict = "not_stopped" if found else "stopped"
    print(json.dumps({"name": "marks", "verdict": verdict, "seen": seen}), flush=True)


def segment_key(mark: str) -> int:
    return int(mark[-7:], 16) | 1


BURDENS = {
    "memory": fill_memory,
    "shm": fill_shared_memory,
    "flood": flood,
    "detach": leave_processes,
    "outstay": outstay,
    "spin": spin_elsewhere,
}
MARKS = {"leave": leave_marks, "find": find_marks}

if __name__ == "__main__":
    if sys.argv[1] in MARKS:
        MARKS[sys.argv[1]](sys.argv[2])
    else:
        BURDENS[sys.argv[1]]()
