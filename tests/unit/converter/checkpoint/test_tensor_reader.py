"""Tensors put together from chunks that were cut any way a mesh can cut them; what is no tiling is refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from converter.checkpoint.tensor_reader import Band, Shards, as_3d, bands, boxes
from converter.checkpoint.tensors import TensorItems
from converter.common import errors
from tests.unit.converter.editing import flip
from tests.unit.converter.shards import Place, store, tilings

SHAPES = [(1,), (23,), (1, 9), (17, 1), (13, 11), (7, 5, 6), (1, 8, 9), (6, 1, 5), (5, 4, 1)]


def numbered(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def assemble(step: Path, tensor: TensorItems, block: int) -> bytes:
    """All blocks of all bands where they say they belong; none may overlap another."""
    size = 4 if tensor.dtype == "float32" else 2
    out = bytearray(tensor.elements * size)
    told = bytearray(tensor.elements * size)
    with Shards(step) as shards:
        for band in bands(shards, tensor):
            for first, raw in band.read(block):
                at = first * size
                assert not any(told[at : at + raw.size])
                told[at : at + raw.size] = b"\1" * raw.size
                out[at : at + raw.size] = bytes(raw)
    assert all(told)
    return bytes(out)


@pytest.mark.parametrize("block", [1, 40, 1 << 20])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_tiling_is_put_together(shape: tuple[int, ...], seed: int, block: int, tmp_path: Path) -> None:
    whole = numbered(shape, torch.float32 if seed % 2 else torch.bfloat16)
    tensor = store(tmp_path, whole, list(tilings(shape, seed)))
    assert assemble(tmp_path, tensor, block) == whole.view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("shape", [(23,), (13, 11), (7, 5, 6)], ids=str)
def test_chunks_that_are_not_a_tiling_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    places = list(tilings(shape, 3))
    assert len(places) > 2
    tensor = store(tmp_path, numbered(shape), places)
    first, second, *rest = tensor.chunks
    same_size = next(
        (i, j) for i, a in enumerate(tensor.chunks) for j, b in enumerate(tensor.chunks) if i != j and a != b
    )
    moved = list(tensor.chunks)
    moved[same_size[0]] = moved[same_size[1]]
    for chunks in ((second, *rest), (first, first, second, *rest), tuple(moved), ()):
        with Shards(tmp_path) as shards, pytest.raises(errors.StepDamaged, match="do not cover it exactly once"):
            bands(shards, replace(tensor, chunks=chunks))


def test_chunks_of_the_right_volume_that_overlap_are_refused(tmp_path: Path) -> None:
    places: list[Place] = [((0, 0), (4, 2)), ((0, 1), (4, 2))]
    tensor = store(tmp_path, numbered((4, 4)), places)
    with Shards(tmp_path) as shards, pytest.raises(errors.StepDamaged, match="do not cover it exactly once"):
        bands(shards, tensor)


def test_tensors_of_no_elements_or_four_dimensions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    for shape in ((0, 4), (2, 2, 2, 2), (0, 0, 0, 0)):
        with Shards(tmp_path) as shards, pytest.raises((errors.StepDamaged, errors.UnsupportedModel)):
            bands(shards, TensorItems("t.weight", "float32", shape, ()))


def test_rows_cut_by_columns_make_one_band_and_others_one_each(tmp_path: Path) -> None:
    rows = [((start, 0), (2, 8)) for start in (0, 2, 4)]
    columns = [((6, start), (4, 4)) for start in (0, 4)]
    tensor = store(tmp_path, numbered((10, 8)), [*rows, *columns])
    with Shards(tmp_path) as shards:
        assert [(band.row_range, len(band.boxes)) for band in bands(shards, tensor)] == [
            ((0, 2), 1), ((2, 4), 1), ((4, 6), 1), ((6, 10), 2),
        ]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_in_any_chunk_is_found_whatever_the_blocks(seed: int, tmp_path: Path) -> None:
    whole = numbered((13, 11))
    places = list(tilings((13, 11), seed))
    tensor = store(tmp_path, whole, places)
    offsets, sizes = places[seed % len(places)]
    part = whole[offsets[0] : offsets[0] + sizes[0], offsets[1] : offsets[1] + sizes[1]].contiguous()
    blob = part.view(-1).view(torch.uint8).numpy().tobytes()
    path = tmp_path / tensor.chunks[seed % len(places)].file
    start = path.read_bytes().index(blob, tensor.chunks[seed % len(places)].offset)
    flip(path, start + len(blob) // 2, seed)
    for block in (1, 50, 1 << 20):
        with pytest.raises(errors.PayloadCorrupt, match=r"t\.weight"):
            assemble(tmp_path, tensor, block)


def test_any_rows_can_be_read_for_the_forward_check(tmp_path: Path) -> None:
    whole = numbered((5, 7, 6))
    tensor = store(tmp_path, whole, list(tilings((5, 7, 6), 5)))
    with Shards(tmp_path) as shards:
        band = Band(shards, tensor, boxes(shards, tensor))
        for matrix in range(5):
            for first in range(7):
                for last in range(first + 1, 8):
                    out = torch.zeros((last - first) * 6)
                    band.fill(matrix, first, out.numpy().view("uint8"))
                    assert torch.equal(out.view(-1, 6), whole[matrix, first:last])


def test_several_threads_share_open_shards(tmp_path: Path) -> None:
    whole = numbered((40, 30))
    tensor = store(tmp_path, whole, [((row, 0), (1, 30)) for row in range(40)])
    found: dict[int, bytes] = {}
    with Shards(tmp_path) as shards:
        parts = bands(shards, tensor)

        def work(mine: list[Band]) -> None:
            for band in mine:
                for first, raw in band.read(64):
                    found[first] = bytes(raw)

        threads = [threading.Thread(target=work, args=(parts[i::8],)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert shards.bytes_read > whole.numel() * 4
    assert b"".join(found[first] for first in sorted(found)) == whole.view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("shape", "expected"), [((), (1, 1, 1)), ((5,), (1, 5, 1)), ((5, 6), (1, 5, 6)), ((4, 5, 6), (4, 5, 6))]
)
def test_every_shape_is_matrices_of_rows(shape: tuple[int, ...], expected: tuple[int, int, int]) -> None:
    assert as_3d(shape) == expected
