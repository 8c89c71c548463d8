"""Files into a sandbox and out of it, by init from inside the walls."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sandbox_bench import Bench, run_in

from sandboxd.isolation import protocol
from sandboxd.isolation.entries import BadEntries, Entries, Entry
from sandboxd.isolation.sandbox import Sandbox
from sandboxd.isolation.spec import File, Then


async def place(
    made: Sandbox, files: list[File], contents: bytes
) -> protocol.Done | protocol.NotPlaced:
    reading, writing = os.pipe()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as pipe:
            pipe.write(contents)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        return await made.place(files, reading)
    finally:
        os.close(reading)
        await asyncio.to_thread(thread.join)


async def collect(
    made: Sandbox, *patterns: str, most_bytes: int = 2**30, most_entries: int = 1000
) -> tuple[dict[str, bytes], dict[str, Entry]]:
    """Contents of the files, and every entry, by path."""
    reading, writing = os.pipe()
    request = protocol.Collect("/work", patterns, most_bytes, most_entries)
    contents: dict[str, bytes] = {}
    seen: dict[str, Entry] = {}

    def read() -> None:
        entries = Entries(reading, most_bytes=most_bytes, most_entries=most_entries)
        for entry in entries:
            seen[entry.path] = entry
            if entry.kind == "file":
                contents[entry.path] = b"".join(entries.content())

    asking = asyncio.ensure_future(made.collect(request, writing))
    await asyncio.sleep(0)
    os.close(writing)
    try:
        await asyncio.to_thread(read)
        await asking
    finally:
        os.close(reading)
    return contents, seen


async def look(made: Sandbox, path: str) -> list[str] | protocol.NotPlaced:
    """The names in a directory."""
    reading, writing = os.pipe()
    try:
        answer = await made.look(protocol.Look(path, 100), writing)
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb"):
        if isinstance(answer, protocol.NotPlaced):
            return answer
        listed = Entries(reading, most_bytes=0, most_entries=100).listed()
        return [entry.name for entry in listed]


def inside(bench: Bench, work: Callable[[Sandbox], Any]) -> Any:
    async def run() -> Any:
        async with bench.sandbox() as made:
            return await work(made)

    return bench.do(run())


async def shell(made: Sandbox, script: str) -> bytes:
    ran = await run_in(made, "sh", "-ec", script, then=Then.CLEAR)
    assert ran.exit is not None, "killed"
    assert ran.exit.code == 0, ran
    return ran.out


def test_files_are_there_with_mode_owner_and_content(bench: Bench) -> None:
    async def work(made: Sandbox) -> bytes:
        files = [
            File("/work/deep/er/a", 0o640, 3),
            File("/work/empty", 0o755, 0),
            File("/work/directory", 0o700, None),
            File("/tmp/b", 0o444, 5),
        ]
        assert await place(made, files, b"abcHELLO") == protocol.Done(entries=4, size_bytes=8)
        return await shell(
            made,
            "stat -c '%a %u %F' /work/deep/er/a /work/empty /work/directory /tmp/b;"
            "cat /work/deep/er/a /tmp/b",
        )

    assert inside(bench, work).decode().splitlines() == [
        "640 1000 regular file",
        "755 1000 regular empty file",
        "700 1000 directory",
        "444 1000 regular file",
        "abcHELLO",
    ]


def test_what_stands_at_the_path_is_replaced_and_never_followed_or_waited_for(bench: Bench) -> None:
    async def work(made: Sandbox) -> bytes:
        await shell(made, "cd /work; echo old > target; ln -s target link; mkfifo fifo")
        files = [File("/work/link", 0o644, 1), File("/work/fifo", 0o644, 1)]
        assert isinstance(await place(made, files, b"12"), protocol.Done)
        return await shell(made, "cd /work; cat target link fifo; stat -c %F link fifo")

    assert inside(bench, work) == b"old\n12regular file\nregular file\n"


@pytest.mark.parametrize("path", ["/usr/x", "/etc/x", "/proc/x", "/sys/x", "/dev/x", "/work"])
def test_a_file_that_cannot_be_made_is_told_by_its_place(bench: Bench, path: str) -> None:
    async def work(made: Sandbox) -> Any:
        answer = await place(made, [File("/work/a", 0o644, 1), File(path, 0o644, 1)], b"xy")
        return answer, await shell(made, "cat /work/a")

    answer, content = inside(bench, work)
    assert isinstance(answer, protocol.NotPlaced)
    assert answer.number == 1
    assert content == b"x"


def test_a_hundred_mebibytes_go_in_and_out_unharmed(bench: Bench) -> None:
    content = os.urandom(2**20) * 100

    async def work(made: Sandbox) -> bytes:
        await place(made, [File("/work/big", 0o644, len(content))], content)
        found, _ = await collect(made, "big")
        return found["/work/big"]

    async def run() -> bytes:
        async with bench.sandbox(scratch_bytes=256 * 2**20) as made:
            return await work(made)

    assert bench.do(run()) == content


def test_patterns_find_names_directories_and_any_depth(bench: Bench) -> None:
    async def work(made: Sandbox) -> Any:
        await shell(
            made, "mkdir -p a/b/c .hidden; touch x.txt y.txt z.md a/b/c/d.txt a/b/e .hidden/f"
        )
        names = []
        for patterns in (
            ["*.txt"],
            ["**/*.txt"],
            ["a"],
            ["[xz].*"],
            ["/work/a/b/?"],
            ["none*"],
            ["*"],
        ):
            found, _ = await collect(made, *patterns)
            names.append(sorted(path.removeprefix("/work/") for path in found))
        return names

    assert inside(bench, work) == [
        ["x.txt", "y.txt"],
        ["a/b/c/d.txt", "x.txt", "y.txt"],
        ["a/b/c/d.txt", "a/b/e"],
        ["x.txt", "z.md"],
        ["a/b/c/d.txt", "a/b/e"],
        [],
        ["a/b/c/d.txt", "a/b/e", "x.txt", "y.txt", "z.md"],
    ]


def test_what_is_no_plain_file_is_told_of_and_passed_over(bench: Bench) -> None:
    async def work(made: Sandbox) -> Any:
        await shell(
            made,
            "ln -s /etc/passwd link; ln -s / up; mkfifo fifo; truncate -s 1T sparse; echo x > closed; chmod 0 closed;"
            "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")';"
            'python3 -c \'open(b"\\xff", "w")\'; echo ok > plain',
        )
        return await collect(made, "*", "/dev/null", "/proc/1/mem")

    contents, seen = inside(bench, work)
    assert contents == {"/work/plain": b"ok\n"}
    assert {path: entry.note for path, entry in seen.items() if entry.kind == "passed_over"} == {
        "/work/link": "symlink",
        "/work/up": "symlink",
        "/work/fifo": "fifo",
        "/work/sock": "socket",
        "/work/sparse": "too_large",
        "/work/closed": "EACCES",
        "/work/\\xff": "not_utf8",
        "/dev/null": "device",
        "/proc/1/mem": "proc",
    }


def test_bytes_and_entries_are_bounded(bench: Bench) -> None:
    async def work(made: Sandbox) -> Any:
        await shell(made, "for i in 1 2 3 4 5; do head -c 100 /dev/zero > f$i; done")
        few_bytes, _ = await collect(made, "f*", most_bytes=250)
        few_entries, seen = await collect(made, "f*", most_entries=2)
        return len(few_bytes), len(few_entries), [e.note for e in seen.values()]

    assert inside(bench, work) == (2, 2, ["", "", "too_many"])


def test_a_file_without_end_gives_what_was_asked_for(bench: Bench) -> None:
    """/proc files have size 0 and content; their content counts, whatever their size says."""

    async def work(made: Sandbox) -> Any:
        contents, _ = await collect(made, "/proc/cpuinfo", "/proc/self/status", most_bytes=1000)
        return sum(map(len, contents.values()))

    assert inside(bench, work) <= 1000


def test_a_deep_tree_ends_somewhere(bench: Bench) -> None:
    async def work(made: Sandbox) -> Any:
        source = "import os\nfor _ in range(300):\n os.mkdir('d'); os.chdir('d')"
        await run_in(made, "python3", "-c", source, then=Then.CLEAR)
        return await collect(made, "d"), await collect(made, "**/d")

    (_, seen), (_, also) = inside(bench, work)
    assert {entry.note for entry in seen.values()} == {"", "too_deep"}
    assert len(also) < 200


def test_a_reader_that_leaves_ends_the_collecting_and_not_the_sandbox(bench: Bench) -> None:
    async def work(made: Sandbox) -> bytes:
        await shell(made, "head -c 10000000 /dev/zero > zeros")
        reading, writing = os.pipe()
        request = protocol.Collect("/work", ("zeros",), 2**30, 10)
        asking = asyncio.ensure_future(made.collect(request, writing))
        await asyncio.sleep(0)
        os.close(writing)
        os.close(reading)
        await asking
        return await shell(made, "echo alive")

    assert inside(bench, work) == b"alive\n"


def written(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


FILE_HEADER = b'["/work/a", "file", 420, ""]'


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\0\0",
        b"\xff\xff\xff\xff",
        written(b"{}", b""),
        written(b'["relative", "file", 420, ""]', b"", b""),
        written(b'["/work/../etc/passwd", "file", 420, ""]', b"", b""),
        written(b'["/work//a", "file", 420, ""]', b"", b""),
        written(b'["/a\\u0000b", "file", 420, ""]', b"", b""),
        written(b'["/a", "device", 420, ""]', b""),
        written(b'["/a", "file", 65536, ""]', b"", b""),
        written(b'["/a", "passed_over", 0, "<b>"]', b""),
        written(FILE_HEADER, b"x" * 101, b"", b""),
        written(FILE_HEADER, b"x"),
        written(*[b'["/a", "directory", 493, ""]'] * 5, b""),
        written(FILE_HEADER) + (2**20 + 1).to_bytes(4, "big"),
        os.urandom(1000),
    ],
)
def test_whatever_else_comes_out_of_a_sandbox_is_refused(stream: bytes, tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(stream)
    with open(tmp_path / "stream", "rb") as file, pytest.raises(BadEntries):
        for _ in Entries(file.fileno(), most_bytes=100, most_entries=3):
            pass


@pytest.mark.attack(31)
def test_paths_that_turn_into_links_while_files_come_and_go_lead_nowhere(
    bench: Bench, tmp_path: Path
) -> None:
    """A command flips a directory and a link to the host's canary, as fast as it can, beside a hundred copies each way."""
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "x").write_bytes(b"canary")
    flip = f"""if True:
        import ctypes, os
        for link, target in (("l", {str(canary)!r}), ("p", "/proc/self")):
            os.symlink(target, link)
        exchange = ctypes.CDLL(None).renameat2
        while True:
            for link in (b"l", b"p"):
                for _ in range(2):
                    exchange(-100, b"d", -100, link, 2)  # RENAME_EXCHANGE
    """

    async def work(made: Sandbox) -> set[bytes]:
        await shell(made, "mkdir d; echo own > d/x")
        begin = 'python3 -c "$0" > /dev/null 2>&1 & until [ -L d ]; do :; done'
        await run_in(made, "sh", "-c", begin, flip, then=Then.KEEP)
        seen: set[bytes] = set()
        answers: set[type] = set()
        for number in range(100):
            files = [File("/work/d/x", 0o644, 4), File(f"/work/d/{number}", 0o644, 1)]
            answers.add(type(await place(made, files, b"own\n1")))
            contents, entries = await collect(made, "d/x", "d/*", "**/x", "d/environ", "d/maps")
            seen |= set(contents.values())
            of_proc = [
                entry for path, entry in entries.items() if path.endswith(("maps", "environ"))
            ]
            assert {entry.kind for entry in of_proc} <= {"passed_over"}
        assert made.alive
        assert answers == {protocol.Done, protocol.NotPlaced}, "it did not flip"
        return seen

    assert inside(bench, work) == {b"own\n", b"1"}
    assert [path.name for path in canary.iterdir()] == ["x"]
    assert (canary / "x").read_bytes() == b"canary"


@pytest.mark.attack(31)
def test_nothing_leads_through_what_init_has_open(bench: Bench) -> None:
    """`self` is init there: its descriptors and its root would lead past the walls that the command sees."""

    async def work(made: Sandbox) -> None:
        await shell(made, "mkdir d; echo own > d/x; ln -s d link; ln -s /proc/self p")
        through = ["p/root/work/d", "p/cwd/work/d", *(f"p/fd/{number}" for number in range(64))]

        patterns = [f"{path}/{name}" for path in through for name in ("x", "*", "**/x")]
        contents, entries = await collect(made, *patterns)
        assert contents == {}
        assert {entry.kind for entry in entries.values()} <= {"passed_over"}

        for path in through:
            for file in (
                File(f"/work/{path}/made", 0o644, 1),
                File(f"/work/{path}/d", 0o755, None),
            ):
                answer = await place(made, [file], b"1")
                assert isinstance(answer, protocol.NotPlaced), path
            assert isinstance(await made.remove(f"/work/{path}/x"), protocol.NotPlaced)
            assert isinstance(await look(made, f"/work/{path}"), protocol.NotPlaced)

        contents, _ = await collect(made, "link/x")
        assert contents == {"/work/link/x": b"own\n"}
        assert await look(made, "/work/link") == ["x"]

    inside(bench, work)


def test_the_beginnings_of_files_are_read_through_links_but_of_nothing_else(bench: Bench) -> None:
    paths = (
        "/work/file",
        "/work/link",
        "/work",
        "/work/fifo",
        "/work/magic",
        "/proc/version",
        "/no",
    )

    async def work(made: Sandbox) -> tuple[protocol.Done, list[bytes]]:
        await shell(made, "cd /work; echo 12345 > file; ln -s file link; mkfifo fifo")
        await shell(made, "ln -s /proc/self/fd/0 /work/magic")
        outputs = [os.memfd_create("read") for _ in paths]
        try:
            done = await made.read(protocol.Read(paths, 3), outputs)
            return done, [os.pread(output, 100, 0) for output in outputs]
        finally:
            for output in outputs:
                os.close(output)

    done, contents = inside(bench, work)

    assert contents == [b"123", b"123", b"", b"", b"", b"", b""]
    assert done == protocol.Done(entries=2, size_bytes=6)
