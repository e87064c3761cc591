"""Owns the way from a staging directory to the published one: durable first, then visible in one step.

Standard library only. Where the file system can exchange two names (`renameat2`, Linux 3.15), an older published
directory is replaced without a moment in which neither is there; where it cannot (NFS), two renames do it, and
`clear` recovers what a crash between them left.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from converter import errors, layout, manifest
from converter.files import fsync_directory, walk

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Makes the folder that published directories lie in, and takes it away again if nothing came to lie in it."""
    if folder.name == layout.SUBDIRECTORY and folder.is_symlink():
        raise errors.OutputForeign(
            "the folder for exports is a symbolic link",
            path=folder,
            hint="links inside runs are not followed: see --output",
        )
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def staging_path(folder: Path, step: int, token: str) -> Path:
    """The directory beside the published one that an export grows in; made by plain mkdir, so that its mode follows the
    umask (mkdtemp's would be 0700)."""
    return folder / layout.staging_name(step, token)


def check_replaceable(published: Path, *, force: bool) -> None:
    """Raises OutputForeign where replacing `published` would destroy somebody's work."""
    try:
        facts = os.lstat(published)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(facts.st_mode):
        raise errors.OutputForeign(
            "the published name is taken by something that is no directory", path=published, hint="move it away"
        )
    if not force and (foreign := manifest.foreign_files(published)):
        raise errors.OutputForeign(
            f"the published directory holds files that are no export's ({', '.join(map(ascii, foreign[:5]))})",
            path=published, hint="move them away, or say --force to lose them",
        )  # fmt: skip


def make_durable(staging: Path) -> None:
    """Every file and directory of `staging` on disk: what a rename names must survive a power loss."""
    for folder, _, names in walk(staging):
        for name in names:
            fd = os.open(Path(folder) / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        fsync_directory(Path(folder))


def publish(staging: Path, published: Path, step: int, token: str) -> None:
    """Swaps `staging` into place and makes the name durable; an older directory goes once the new one is there."""
    folder = published.parent
    if not published.exists():
        _rename(staging, published)
    elif _exchange(staging, published):
        fsync_directory(folder)
        discard(staging)
    else:
        aside = folder / layout.replaced_name(step, token)
        _rename(published, aside)
        try:
            _rename(staging, published)
        except BaseException:
            if not os.path.lexists(published):
                _rename(aside, published)
            raise
        fsync_directory(folder)
        discard(aside)
    fsync_directory(folder)


def clear(folder: Path, step: int) -> None:
    """Removes what a dead attempt left of `step`, the lock's holder calling; a set-aside directory whose successor
    never came is put back."""
    published = folder / layout.published_name(step)
    for name in sorted(os.listdir(folder)):
        parsed = layout.parse_ours(name)
        if parsed is None or parsed[0] != step or parsed[2] == "lock":
            continue
        set_aside = parsed[2] == "replaced" and stat.S_ISDIR(os.lstat(folder / name).st_mode)
        if set_aside and not os.path.lexists(published):
            _rename(folder / name, published)
            fsync_directory(folder)
        else:
            remove_tree(folder / name)


def remove_tree(path: Path) -> None:
    """Removes a directory of ours; what of it is gone already is fine. Of a link or a file in its place, that alone."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return

    def unless_gone(_call: object, _name: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
        if not isinstance(failure[1], FileNotFoundError):
            raise failure[1]

    shutil.rmtree(path, onerror=unless_gone)


def discard(path: Path) -> None:
    """Removes what nobody needs any more, as far as it can be removed now: what stays is left to the next `clear`."""
    with contextlib.suppress(OSError):
        remove_tree(path)


def _rename(old: Path, new: Path) -> None:
    """`os.rename`, and after an error a look at what is there: on NFS a lost reply turns a success into ENOENT."""
    identity = os.lstat(old).st_ino
    try:
        os.rename(old, new)
    except OSError:
        try:
            done = os.lstat(new).st_ino == identity and not os.path.lexists(old)
        except FileNotFoundError:
            done = False
        if not done:
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Whether the two names could be exchanged in one step."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
