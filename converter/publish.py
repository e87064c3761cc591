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
from collections.abc import Callable, Iterator
from pathlib import Path

from converter import errors, existing, interrupts, layout, manifest
from converter.existing import Existing
from converter.files import exists, fsync_directory, read_regular, walk
from converter.manifest import Manifest

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CHANGED = frozenset({errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})
"""What the published name came to be, or is no more, since it was looked at."""
Kept = Callable[[Path, str], None]
"""Told where a person's files were kept, and why."""


def _tell_nobody(kept: Path, why: str) -> None:
    """For a caller that only wants them kept."""


@contextlib.contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Makes the folder that published directories lie in, and takes it away again if nothing came to lie in it."""
    if folder.name == layout.SUBDIRECTORY and folder.is_symlink():
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
    return folder / layout.staging_name(step, token)


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
    found, named = existing.look(directory), named or directory
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
    wanted = {name: entry.size for name, entry in (made.files | made.added).items()} | {layout.MANIFEST: len(text)}
    found = {}
    for folder, _, names in walk(staging):
        for name in names:
            path = Path(folder) / name
            if not name.startswith(".nfs"):
                found[str(path.relative_to(staging))] = os.lstat(path).st_size
    if signed:
        wanted[layout.SIGNATURE] = found.get(layout.SIGNATURE, -1)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            what = "is missing" if name not in found else "has another size" if name in wanted else "is not ours"
            raise _not_whole(staging / name, what)
    if read_regular(staging / layout.MANIFEST, limit=len(text)) != text:
        raise _not_whole(staging / layout.MANIFEST, "has other bytes")


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
    kept: Kept = _tell_nobody,
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
                _keep_edited(old, published.parent, step, kept)
                discard(old)
    return replaced


def _swap(
    staging: Path, published: Path, step: int, token: str, check: Callable[[Path], Existing | None]
) -> tuple[Existing | None, Path | None]:
    """(what was replaced, where it lies now)."""
    folder = published.parent
    check(published)
    if not os.path.lexists(published):
        _rename(staging, published)
        return None, None
    if _exchange(staging, published):
        try:
            return check(staging), staging
        except BaseException:
            try:
                _exchange(staging, published)
            except OSError:
                kept = folder / layout.kept_name(step, token)
                _rename(staging, kept)
                raise errors.OutputForeign(
                    "somebody's files came to the published name and cannot be put back there",
                    path=kept,
                    hint="move them",
                ) from None
            raise
    aside = folder / layout.replaced_name(step, token)
    _rename(published, aside)
    try:
        replaced = check(aside)
        _rename(staging, published)
    except BaseException:
        if not os.path.lexists(published):
            _rename(aside, published)
        raise
    return replaced, aside


def _keep_edited(directory: Path, folder: Path, step: int, kept: Kept) -> None:
    """Moves what a person edited in an export of ours to a directory that nothing removes. Raises OSError."""
    names = manifest.edited_files(directory)
    if not names:
        return
    aside = folder / layout.kept_name(step, layout.new_token())
    aside.mkdir()
    for name in names:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        _rename(directory / name, aside / name)
    fsync_directory(folder)
    kept(aside, f"files of the replaced export had been edited ({', '.join(map(ascii, names[:5]))})")


def clear(folder: Path, step: int, check: Callable[[], None], kept: Kept = _tell_nobody) -> None:
    """Removes what dead attempts left of `step`; a set-aside directory whose successor never came is put back, and what is a
    person's is kept.

    `check` raises LockLost unless the caller holds the lock. It is asked after the listing: so every name in it belongs
    to an earlier owner. One that was stopped meanwhile may still want to publish its staging directory, so a directory
    is renamed before it is removed: either rename wins, and nobody publishes half of it.
    """
    published = folder / layout.published_name(step)
    names = sorted(os.listdir(folder))
    check()
    for name in names:
        parsed = layout.parse_ours(name)
        if parsed is None or parsed[0] != step or parsed[2] == "lock":
            continue
        path = folder / name
        with contextlib.suppress(FileNotFoundError):  # its owner woke up, and was first
            if parsed[2] == "replaced" and stat.S_ISDIR(os.lstat(path).st_mode):
                if not os.path.lexists(published):
                    _rename(path, published)
                    continue
                if foreign := manifest.foreign_files(path):
                    kept(path, f"a replaced directory holds somebody's files ({', '.join(map(ascii, foreign[:5]))})")
                    continue
            if parsed[2] == "staging" and _is_somebodys(path):
                aside = folder / layout.kept_name(step, layout.new_token())
                _rename(path, aside)
                kept(aside, "somebody's directory was swapped out, and the process was killed before it put it back")
                continue
            if parsed[2] != "discarded":
                discarded = folder / layout.discarded_name(step, layout.new_token())
                _rename(path, discarded)
                path = discarded
            _keep_edited(path, folder, step, kept)
            remove_tree(path)


def _is_somebodys(staging: Path) -> bool:
    """Whether a person's directory has this name: an exchange took it out, and the process was killed before it was put back.

    An export that died half-way has a file of an export, whatever a hook put beside it; one that has begun has none at all.
    """
    if not stat.S_ISDIR(os.lstat(staging).st_mode):
        return False
    names = os.listdir(staging)
    return bool(names) and not any(manifest.is_name_of_export(name) or name == layout.MANIFEST for name in names)


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
