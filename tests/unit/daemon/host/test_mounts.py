"""Whether events are real is told by the mount's type alone; the path is never touched."""

import pytest

from daemon.host import mounts

TABLE = r"""20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
21 20 0:30 / /mnt/ckpt rw - nfs4 server:/export rw
22 21 8:2 / /mnt/ckpt/local rw - xfs /dev/sdb rw
23 20 0:31 / /data\040space rw - fuse.something x rw
24 20 0:32 / /mnt/ckpt2 rw - wekafs default rw
"""


@pytest.mark.parametrize(
    ("path", "type_"),
    [
        ("/home/x", "ext4"),
        ("/mnt/ckpt/run", "nfs4"),
        ("/mnt/ckpt", "nfs4"),
        ("/mnt/ckpt/local/run", "xfs"),
        ("/mnt/ckpt2/run", "wekafs"),
        ("/mnt/ckpt3", "ext4"),
        ("/data space/run", "fuse.something"),
    ],
)
def test_a_path_is_on_the_longest_mount_that_holds_it(path: str, type_: str) -> None:
    assert mounts.of(path, table=TABLE).type == type_


def test_events_are_real_on_local_file_systems_only() -> None:
    assert mounts.has_events("/home", table=TABLE)
    assert not mounts.has_events("/mnt/ckpt/run", table=TABLE)
    assert not mounts.has_events("/data space", table=TABLE), "in doubt, poll"


def test_a_local_root_with_a_remote_mount_below_it_is_polled() -> None:
    assert not mounts.has_events("/mnt", table=TABLE)
    assert mounts.has_events("/mnt/ckpt/local", table=TABLE)


def test_the_last_of_two_mounts_on_one_point_holds() -> None:
    assert mounts.of("/mnt/ckpt", table=TABLE + "25 21 0:9 / /mnt/ckpt rw - tmpfs none rw\n").type == "tmpfs"
