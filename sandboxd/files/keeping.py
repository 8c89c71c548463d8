"""What comes out of a sandbox, written to the disk. Blocks: for a thread."""

import contextlib
import hashlib
from typing import NamedTuple

from sandboxd.files.content import Contents, StorageFailed, Writer
from sandboxd.isolation.entries import BadEntries, Entries, Entry
from sandboxd.jobs import Artifact, Job, PassedOver

MOST_TOLD = 100
"""So many of the entries that are passed over are told one by one."""
_MAGIC = frozenset("*?[")


class Kept(NamedTuple):
    """What is kept of a job's files, and what is not."""

    artifacts: tuple[Artifact, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()


class Keeper:
    """The files of one job on their way to the disk."""

    def __init__(self, contents: Contents, job: Job, workdir: str) -> None:
        """`workdir`: the absolute path that relative ones start from."""
        self._contents = contents
        self._job = job
        self._base = workdir.rstrip("/") + "/"
        self._artifacts: dict[str, Artifact] = {}
        """By path, without the slash that an absolute one begins with: so it is asked for."""
        self._passed_over: list[PassedOver] = []
        self._untold = 0
        self._seen: set[str] = set()

    def keep(self, entries: Entries) -> None:
        """Write them, and bring them to the disk. Raises StorageFailed, BadEntries.

        What was whole when either is raised is kept, if BadEntries is.
        """
        try:
            self._contents.remove([self._job.id])
            self._keep_all(entries)
        except OSError as error:
            self._artifacts.clear()
            with contextlib.suppress(OSError):
                self._contents.remove([self._job.id])
            raise StorageFailed(f"the job's files cannot be kept: {error.strerror}") from error

    def kept(self, cut_short: str) -> Kept:
        """What came of it. `cut_short`: why there may be more; empty if there is not."""
        if not cut_short:
            for pattern in self._job.spec.outputs:
                if not _MAGIC & set(pattern) and self._shown(pattern) not in self._seen:
                    self._pass_over(pattern, "not_found")
        told = self._passed_over[:MOST_TOLD]
        if self._untold:
            told.append(PassedOver(path="", reason=f"and_{self._untold}_more"))
        if cut_short:
            told.append(PassedOver(path="", reason=cut_short))
        return Kept(tuple(self._artifacts.values()), tuple(told))

    def _keep_all(self, entries: Entries) -> None:
        writer: Writer | None = None
        try:
            for entry in entries:
                self._seen.add(self._shown(entry.path))
                if entry.kind == "passed_over":
                    self._pass_over(self._shown(entry.path), entry.note)
                elif entry.kind == "file":
                    if writer is None:
                        writer = self._contents.create(self._job.id)
                    self._keep_file(entries, entry, writer)
        finally:
            # What is whole stays, whatever ended it.
            if writer is not None:
                try:
                    writer.sync()
                finally:
                    writer.close()
                self._contents.settle()

    def _keep_file(self, entries: Entries, entry: Entry, writer: Writer) -> None:
        path = self._shown(entry.path)
        key = path.lstrip("/")
        offset = writer.size_bytes
        digest = hashlib.sha256()
        try:
            for piece in entries.content():
                digest.update(piece)
                writer.write(piece)
        except BadEntries:
            writer.cut(offset)
            raise
        if key in self._artifacts:
            # `tmp/x` and `/tmp/x` could not be told apart in an address.
            writer.cut(offset)
            self._pass_over(path, "ambiguous")
            return
        self._artifacts[key] = Artifact(
            path=path,
            size_bytes=writer.size_bytes - offset,
            mode=entry.mode & 0o777,
            sha256=digest.hexdigest(),
            offset=offset,
        )

    def _pass_over(self, path: str, reason: str) -> None:
        if len(self._passed_over) < MOST_TOLD:
            self._passed_over.append(PassedOver(path=path, reason=reason))
        else:
            self._untold += 1

    def _shown(self, path: str) -> str:
        """A path inside as it is told: relative to the working directory if it is below that."""
        plain = "/".join(part for part in path.split("/") if part not in ("", "."))
        if not path.startswith("/"):
            return plain
        whole = f"/{plain}"
        return whole.removeprefix(self._base)
