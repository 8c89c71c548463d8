"""Which directories a database may be in."""

from pathlib import Path

import pytest

from sandboxd.errors import HostNotReady
from sandboxd.store.ownership import NETWORK_FILESYSTEMS, filesystem_of, owned

MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /srv rw - nfs4 server:/export rw
31 30 0:26 / /srv/local rw - xfs /dev/vdb rw
32 22 0:27 / /with\040blank rw shared:2 master:1 - cifs //server/share rw
33 22 0:28 / /twice rw - tmpfs tmpfs rw
34 33 0:29 / /twice rw - fuse.sshfs host: rw
""".splitlines(keepends=True)


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/deep/er", "nfs4"),
        ("/srv/local/data", "xfs"),
        ("/srvother", "ext4"),
        ("/with blank/data", "cifs"),
        ("/twice", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_directory_is_that_of_the_nearest_mount(
    directory: str, kind: str
) -> None:
    assert filesystem_of(Path(directory), MOUNTS) == kind


def test_a_local_directory_is_accepted_and_locked(tmp_path: Path) -> None:
    with open("/proc/self/mountinfo") as mounts:
        assert filesystem_of(tmp_path, mounts) not in {None, *NETWORK_FILESYSTEMS}

    with owned(tmp_path / "a.db"):
        with pytest.raises(HostNotReady, match="another process owns"), owned(tmp_path / "a.db"):
            pass
        with owned(tmp_path / "b.db"):
            pass
    with owned(tmp_path / "a.db"):
        pass


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostNotReady, match="missing"), owned(tmp_path / "missing" / "a.db"):
        pass
