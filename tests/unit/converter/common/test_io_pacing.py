"""A conversion reads and writes no faster than asked, and leaves the page cache to training."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.common.io_pacing import Traffic, drop_from_cache
from converter.run.options import Options
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.running import Convert

CASE = BY_NAME["one_rank"]
PAGE = mmap.PAGESIZE


def cached_pages(path: Path) -> int:
    """Pages of a file that are in the page cache (mincore(2))."""
    size = path.stat().st_size
    if not size:
        return 0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        found = (ctypes.c_ubyte * (-(-size // PAGE)))()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), found) == 0
        return sum(byte & 1 for byte in found)


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    """4 MiB on disk and in the page cache; skipped where the file system keeps no such cache."""
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.write(os.urandom(4 << 20))
        os.fsync(file.fileno())
    if cached_pages(path) == 0:
        pytest.skip("mincore shows nothing of this file system's cache")
    with open(path, "rb") as file:  # by the system's call itself: a broken drop of ours must not look like this
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(path) > 0:
        pytest.skip("this file system does not drop pages (tmpfs)")
    path.read_bytes()
    return path


def test_files_leave_the_page_cache_and_what_is_not_there_is_no_failure(big_file: Path, tmp_path: Path) -> None:
    assert cached_pages(big_file) > 0

    drop_from_cache([tmp_path / "gone", tmp_path, big_file])

    assert cached_pages(big_file) == 0


def test_the_bytes_of_all_threads_take_the_time_of_the_limit() -> None:
    slept: list[float] = []
    traffic = Traffic(1000, clock=lambda: 50.0, sleep=slept.append)

    for _ in range(3):
        traffic(-1, 0, 500)

    assert slept == [0.5, 1.0, 1.5]


def test_a_pause_saves_nothing_up() -> None:
    now, slept = [0.0], list[float]()
    traffic = Traffic(1000, clock=lambda: now[0], sleep=slept.append)
    traffic(-1, 0, 100)
    now[0] = 3600.0

    traffic(-1, 0, 100)

    assert slept == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("start", [0, 704])
def test_what_was_read_is_dropped_behind_block_by_block(big_file: Path, start: int) -> None:
    traffic = Traffic(drop_behind=True)
    fd = os.open(big_file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead: what stays would be ours
    before = cached_pages(big_file)

    for position in range(start, 3 << 20, 1 << 18):
        os.pread(fd, 1 << 18, position)
        traffic(fd, position, 1 << 18)
    os.close(fd)

    assert before == (4 << 20) // PAGE
    assert cached_pages(big_file) <= (1 << 20) // PAGE


def test_a_model_that_fills_the_cache_is_dropped_behind_and_a_small_one_kept_for_its_second_reader() -> None:
    options = Options(io_bandwidth_limit=100)

    assert options.traffic(1 << 30).drop_behind is False
    assert options.traffic(5 << 30).drop_behind is True
    assert options.traffic(1).limit == 50, "each of two processes half"
    assert Options(io_bandwidth_limit=100, forward_check="off").traffic(1).limit == 100


def test_nothing_of_checkpoint_and_export_stays_in_the_page_cache(
    big_file: Path, copy_step: Callable[..., Path], checkpoints: Path
) -> None:
    step = copy_step(CASE)
    for shard in step.iterdir():
        os.sync()
        shard.read_bytes()
    assert sum(map(cached_pages, step.iterdir())) > 0

    published = Convert()(step).published

    assert sum(map(cached_pages, step.iterdir())) == 0
    assert sum(map(cached_pages, published.glob("*.safetensors"))) == 0


def test_a_limited_conversion_gives_the_same_bytes_and_takes_the_time_of_its_bytes(
    copy_step: Callable[..., Path], tmp_path: Path
) -> None:
    step = copy_step(CASE)
    quick = Convert()(step).published / "model.safetensors"
    expected = quick.read_bytes()
    model = sum(shard.stat().st_size for shard in step.glob("*.distcp"))

    began = time.monotonic()
    slow = Convert()(step, io_bandwidth_limit=model, forward_check="off").published / "model.safetensors"

    assert slow.read_bytes() == expected
    assert time.monotonic() - began > (len(expected) * 3) / model * 0.9, "read, written and read back"
