"""Owns the swap of a staging directory to the published name. It is made durable first, then visible in one step.

Uses only the standard library. If the file system can exchange two names (`renameat2`, Linux 3.15), an older published
directory is replaced without a moment in which neither exists. Otherwise (NFS), two renames do it, and `clear` repairs
the state after a crash between them.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from converter.common import errors, interrupts, names_on_disk
from converter.common.files import exists, fsync_directory, read_regular, rename, walk
from converter.publish import existing_output, manifest
from converter.publish.existing_output import Existing
from converter.publish.manifest import Manifest
from converter.publish.stale_files import TellKept, discard, keep_edited, tell_nobody

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CHANGED = frozenset({errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})
"""What the published name came to be, or is no more, since it was looked at."""


@contextlib.contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Makes the folder that published directories lie in, and takes it away again if nothing came to lie in it."""
    if folder.name == names_on_disk.SUBDIRECTORY and folder.is_symlink():
        raise errors.OutputForeign(
            "the folder for exports is a symbolic link",
            path=folder,
            hint="links inside runs are not followed: see --output",
        )
    made = not exists(folder)
    folder.mkdir(exist_ok=True)
    try:
        if made:
            fsync_directory(folder.parent)  # what is published in it is as durable as its own name
        yield
    finally:
        if made:
            with interrupts.held(), contextlib.suppress(OSError):
                folder.rmdir()


def staging_path(folder: Path, step: int, token: str) -> Path:
    """The directory beside the published one that an export grows in; made by plain mkdir, so that its mode follows the
    umask (mkdtemp's would be 0700)."""
    return folder / names_on_disk.staging_name(step, token)


def check_replaceable(
    directory: Path,
    *,
    force: bool,
    ours_only: bool = False,
    named: Path | None = None,
    shared_by: tuple[str, str] | None = None,
) -> Existing | None:
    """What a new export may replace; None where nothing is there. Raises OutputForeign where that is somebody's work.

    `ours_only` protects exports without our manifest too; `named` is what an error calls the directory. `shared_by`: save id
    and run config's sha256 of the new export, where exports of other runs may lie in the same folder. An export that
    differs in both is another run's.
    """
    found, named = existing_output.look_at_output(directory), named or directory
    if found is None or found.whose == "nobody":
        return None
    if found.whose == "no directory":
        raise errors.OutputForeign(
            "the published name is taken by something that is no directory", path=named, hint="move it away"
        )
    if not force and found.whose == "foreign":
        raise errors.OutputForeign(
            f"the published directory holds files that are no export's ({', '.join(map(ascii, found.foreign[:5]))})",
            path=named,
            hint="move them away, or say --force to lose them",
        )
    if not force and ours_only and found.whose != "ours":
        raise errors.OutputForeign(
            "the published directory is an export without our manifest",
            path=named,
            hint="move it away, or say --force to lose it",
        )
    if not force and shared_by and found.made is not None:
        save_id, run_config = found.made.save_id, found.made.run_config_sha256
        if save_id != shared_by[0] and run_config != shared_by[1]:
            raise errors.OutputForeign(
                "the published directory is the export of another run (another save, and another run config)",
                path=named,
                hint="name another folder with --output for each run, or say --force to replace it",
            )
    return found


def check_whole(staging: Path, made: Manifest, *, signed: bool) -> None:
    """Raises MachineFailure unless `staging` holds what the manifest lists, with these sizes, and nothing else."""
    text = manifest.to_bytes(made)
    wanted = {name: entry.size for name, entry in (made.files | made.added).items()} | {
        names_on_disk.MANIFEST: len(text)
    }
    found = {}
    for folder, _, names in walk(staging):
        for name in names:
            path = Path(folder) / name
            if not name.startswith(".nfs"):
                found[str(path.relative_to(staging))] = os.lstat(path).st_size
    if signed:
        wanted[names_on_disk.SIGNATURE] = found.get(names_on_disk.SIGNATURE, -1)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            what = "is missing" if name not in found else "has another size" if name in wanted else "is not ours"
            raise _not_whole(staging / name, what)
    if read_regular(staging / names_on_disk.MANIFEST, limit=len(text)) != text:
        raise _not_whole(staging / names_on_disk.MANIFEST, "has other bytes")


def _not_whole(path: Path, what: str) -> errors.MachineFailure:
    return errors.MachineFailure(
        f"a file of the finished export {what}: another process changed the staging directory; nothing was published",
        path=path,
        hint="see what else writes to this folder; it is tried again",
    )


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


def publish(
    staging: Path, published: Path, step: int, token: str, check: Callable[[Path], Existing | None],
    kept: TellKept = tell_nobody,
) -> Existing | None:  # fmt: skip
    """Swaps `staging` into place and makes the name durable; returns what was replaced, which is removed, but for the files
    of it that a person had edited.

    `check` is `check_replaceable`. It is asked before the swap, and again of what the swap took out, which is put back
    if it is somebody's: a directory may appear, or change, at any moment. A signal waits for the end.
    """
    with interrupts.held():
        for tries_left in (2, 1, 0):
            try:
                replaced, old = _swap(staging, published, step, token, check)
                break
            except OSError as error:
                if not tries_left or error.errno not in _CHANGED:
                    raise
        fsync_directory(published.parent)
        if old is not None:
            with contextlib.suppress(OSError):  # it stays as it is, for the next `clear`
                keep_edited(old, published.parent, step, kept)
                discard(old)
    return replaced


def _swap(
    staging: Path, published: Path, step: int, token: str, check: Callable[[Path], Existing | None]
) -> tuple[Existing | None, Path | None]:
    """(what was replaced, where it lies now)."""
    folder = published.parent
    check(published)
    if not os.path.lexists(published):
        rename(staging, published)
        return None, None
    if _exchange(staging, published):
        try:
            return check(staging), staging
        except BaseException:
            try:
                _exchange(staging, published)
            except OSError:
                kept = folder / names_on_disk.kept_name(step, token)
                rename(staging, kept)
                raise errors.OutputForeign(
                    "somebody's files came to the published name and cannot be put back there",
                    path=kept,
                    hint="move them",
                ) from None
            raise
    aside = folder / names_on_disk.replaced_name(step, token)
    rename(published, aside)
    try:
        replaced = check(aside)
        rename(staging, published)
    except BaseException:
        if not os.path.lexists(published):
            rename(aside, published)
        raise
    return replaced, aside


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
