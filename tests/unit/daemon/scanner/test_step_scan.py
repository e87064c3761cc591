"""When a step is believed complete, damaged, or the same as before: on real listings of real checkpoints."""

import os
import shutil
from pathlib import Path

import pytest

from converter.checkpoint import probe as storage
from converter.checkpoint.completeness import list_step
from daemon.scanner.messages import Answer, answer_of
from daemon.scanner.probe_client import ProbeError
from daemon.scanner.step_scan import StepTrack
from tests.support.checkpoints.cases import BY_NAME


class Probe:
    """The real answers, without a process for each, and how often they were asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: str, metadata_size: int) -> Answer:
        self.count += 1
        return answer_of(storage.probe(Path(path)))


@pytest.fixture
def step(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "step-10", tmp_path / "step-10"))


def later_than_metadata(step: Path, seconds: float) -> None:
    """Makes the shard so much newer than `.metadata`."""
    at = os.stat(step / ".metadata").st_mtime_ns + int(seconds * 1e9)
    os.utime(step / "__0_0.distcp", ns=(at, at))


def test_a_complete_step_is_believed_at_the_first_look_and_read_once(step: Path) -> None:
    track, probe = StepTrack(str(step)), Probe()
    for now in (0.0, 10.0, 200.0):
        track.look(probe, now)

    assert track.answer is not None
    assert track.answer.state == "complete"
    assert not track.is_open
    assert probe.count == 1


def test_a_step_without_metadata_is_incomplete_and_costs_no_process(step: Path) -> None:
    (step / ".metadata").unlink()
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)

    assert track.answer == Answer(state="incomplete", reason="no .metadata yet")
    assert track.is_open
    assert probe.count == 0


def test_metadata_that_appears_is_read_at_once(step: Path) -> None:
    os.rename(step / ".metadata", step / ".metadata.tmp")
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    os.rename(step / ".metadata.tmp", step / ".metadata")
    track.look(probe, 0.1)

    assert track.answer is not None
    assert track.answer.state == "complete"


def test_a_shard_a_little_newer_than_metadata_counts_after_ten_seconds_of_rest(step: Path) -> None:
    later_than_metadata(step, 3)
    track, probe = StepTrack(str(step)), Probe()
    states = []
    for now in (0.0, 5.0, 9.9, 10.0):
        track.look(probe, now)
        states.append(track.answer.state if track.answer else None)

    assert states == ["settling", "settling", "settling", "complete"]
    assert probe.count == 1
    assert not track.is_open


def test_rest_begins_anew_with_every_change(step: Path) -> None:
    later_than_metadata(step, 3)
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    later_than_metadata(step, 4)
    track.look(probe, 8.0)
    track.look(probe, 12.0)
    assert track.answer is not None
    assert track.answer.state == "settling"
    track.look(probe, 18.0)

    assert track.answer.state == "complete"


def test_a_copy_is_suspect_and_looked_at_again(step: Path) -> None:
    later_than_metadata(step, 60)
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    assert track.answer is not None
    assert (track.answer.state, track.is_open) == ("suspect", True)

    at = os.stat(step / "__0_0.distcp").st_mtime_ns
    os.utime(step / ".metadata", ns=(at, at))
    track.look(probe, 5.0)
    assert track.answer.state == "complete"


def test_metadata_that_is_still_being_copied_is_not_called_damaged(step: Path) -> None:
    whole = (step / ".metadata").read_bytes()
    (step / ".metadata").write_bytes(whole[:100])
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    assert track.answer is not None
    assert track.answer.state == "settling"

    (step / ".metadata").write_bytes(whole)
    track.look(probe, 3.0)
    assert track.answer.state == "complete"


def test_damaged_metadata_is_believed_after_ten_seconds_of_rest(step: Path) -> None:
    (step / ".metadata").write_bytes(b"not a pickle")
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    track.look(probe, 10.0)

    assert track.answer is not None
    assert (track.answer.state, track.answer.error, track.is_open) == ("damaged", "StepDamaged", False)


def test_shards_rewritten_under_an_old_metadata_are_not_read_at_every_listing(step: Path) -> None:
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    os.unlink(step / "__0_0.distcp")
    track.forget()
    track.look(probe, 1.0)
    count = probe.count
    for i in range(5):
        (step / "__0_0.distcp").write_bytes(b"x" * (i + 1))
        track.look(probe, 2.0 + i / 10)
    assert probe.count == count
    assert track.wake_at is not None

    track.look(probe, 12.4)
    assert track.answer is not None
    assert (track.answer.state, probe.count) == ("incomplete", count + 1)


def test_a_settled_step_is_entered_again_when_its_metadata_was_replaced(step: Path, saved: Path) -> None:
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    (step / ".metadata.tmp").write_bytes((saved / "step-10" / ".metadata").read_bytes())
    os.rename(step / ".metadata.tmp", step / ".metadata")
    track.look(probe, 10.0)

    assert probe.count == 2


def test_a_metadata_that_was_put_in_place_with_every_time_and_size_kept_is_noticed(step: Path) -> None:
    """As a mirror does it: rsync -a renames the new file over the old one and sets the directory's time back."""
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    assert track.is_as_it_was()
    folder = os.stat(step)
    shutil.copy2(step / ".metadata", step / ".metadata.new")
    os.rename(step / ".metadata.new", step / ".metadata")
    os.utime(step, ns=(folder.st_atime_ns, folder.st_mtime_ns))

    assert not track.is_as_it_was()


def test_an_answer_about_other_files_than_were_listed_is_not_believed(step: Path) -> None:
    track, probe = StepTrack(str(step)), Probe()

    def while_it_is_written(path: str, metadata_size: int) -> Answer:
        later_than_metadata(step, -3)
        return probe(path, metadata_size)

    track.look(while_it_is_written, 0.0)
    assert track.answer == Answer(state="settling", reason="being written")
    assert track.is_open


def test_an_answer_of_an_earlier_life_is_believed_for_the_same_listing_only(step: Path) -> None:
    first, probe = StepTrack(str(step)), Probe()
    first.look(probe, 0.0)
    known = first.answer
    assert known is not None

    same = StepTrack(str(step), known)
    same.look(probe, 0.0)
    assert (same.answer, probe.count) == (known, 1)

    (step / "__9_9.distcp").write_text("x")
    StepTrack(str(step), known).look(probe, 0.0)
    assert probe.count == 2


def test_a_probe_that_fails_says_nothing_about_the_step(step: Path) -> None:
    def fails(path: str, metadata_size: int) -> Answer:
        raise ProbeError("no answer within 30 s")

    track = StepTrack(str(step))
    assert track.look(fails, 0.0) == "no answer within 30 s"
    assert track.answer is not None
    assert (track.answer.state, track.is_open) == ("incomplete", True)


def test_a_step_that_is_gone_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StepTrack(str(tmp_path / "step-1")).look(Probe(), 0.0)


def test_a_step_said_to_be_gone_while_it_was_looked_at_is_asked_again(
    step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track, probe = StepTrack(str(step)), Probe()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "completeness", lambda *_: os.stat(step / "not there"))
        track.look(probe, 0.0)
    assert track.answer is not None
    assert track.answer.state == "incomplete"
    assert track.wake_at == 1.0

    track.look(probe, 10.0)
    assert track.answer.state == "complete"


# A mirror in parts
def saved_again(step: Path, *, seconds: float) -> dict[str, tuple[bytes, int]]:
    """Bytes and mtimes of the files of another save of this step, made so much later."""
    payload, save_id = (step / ".metadata").read_bytes(), str(storage.probe(step)["save_id"])
    other = save_id[:-4] + ("0000" if save_id[-4:] != "0000" else "1111")
    files = {
        ".metadata": payload.replace(save_id.encode(), other.encode()),
        "__0_0.distcp": (step / "__0_0.distcp").read_bytes(),
    }
    return {name: (content, os.stat(step / name).st_mtime_ns + int(seconds * 1e9)) for name, content in files.items()}


def mirror(step: Path, files: dict[str, tuple[bytes, int]], name: str) -> None:
    """Puts one file in place as `rsync -a` does."""
    content, at = files[name]
    (step / f".{name}.AbC123").write_bytes(content)
    os.utime(step / f".{name}.AbC123", ns=(at, at))
    os.rename(step / f".{name}.AbC123", step / name)


def state_of(track: StepTrack) -> str:
    assert track.answer is not None
    return track.answer.state


@pytest.mark.parametrize("restart", [False, True])
def test_shards_of_the_earlier_save_under_the_id_of_a_new_one_are_suspect_until_the_mirror_ends(
    step: Path, restart: bool
) -> None:
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    files = saved_again(step, seconds=600.0)
    mirror(step, files, ".metadata")
    if restart:
        track = StepTrack(str(step), track.answer)
    track.look(probe, 10.0)
    assert state_of(track) == "suspect"
    assert track.is_open
    if restart:
        track = StepTrack(str(step), track.answer)
        track.look(probe, 20.0)
        assert state_of(track) == "suspect"

    mirror(step, files, "__0_0.distcp")
    track.look(probe, 30.0)
    track.look(probe, 40.0)
    assert state_of(track) == "complete"


@pytest.mark.parametrize("restart", [False, True])
def test_older_shards_under_an_unchanged_metadata_are_suspect_until_its_own_are_back(step: Path, restart: bool) -> None:
    """`rsync -a --exclude=.metadata` of another save over it, cut off before `.metadata` came."""
    shard = step / "__0_0.distcp"
    own, older = shard.read_bytes(), shard.stat().st_mtime_ns
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    assert state_of(track) == "complete"

    for seconds, at in ((600.0, 20.0), (660.0, 60.0)):  # one shard, and another save's after it
        shard.write_bytes(bytes(len(own)))
        os.utime(shard, ns=(older, older - int(seconds * 1e9)))
        if restart:
            track = StepTrack(str(step), track.answer)
        track.look(probe, at, whole=True)
        track.look(probe, at + 15.0, whole=True)
        assert state_of(track) == "suspect"
        assert track.answer is not None
        assert "older than those that this save had" in track.answer.reason

    shard.write_bytes(own)
    os.utime(shard, ns=(older, older))
    track.look(probe, 100.0, whole=True)
    track.look(probe, 115.0, whole=True)
    assert state_of(track) == "complete"


def test_a_persons_file_in_a_step_is_no_news_of_it(step: Path) -> None:
    before = list_step(step).fingerprint
    for name in ("UPLOADED", "eval.json", "notes.md", "eval.log"):
        (step / name).write_text("x")
    assert list_step(step).fingerprint == before
    (step / "__9_9.distcp").write_text("x")
    assert list_step(step).fingerprint != before


def test_an_older_save_that_is_put_back_from_a_backup_is_complete(step: Path) -> None:
    older = saved_again(step, seconds=-3000.0)
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    for name in ("__0_0.distcp", ".metadata"):
        mirror(step, older, name)
    track.look(probe, 10.0)

    assert state_of(track) == "complete"


def test_what_lay_here_before_is_known_through_a_moment_without_metadata(step: Path) -> None:
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    files = saved_again(step, seconds=600.0)
    (step / ".metadata").unlink()
    track.look(probe, 5.0)
    track = StepTrack(str(step), track.answer)
    mirror(step, files, ".metadata")
    track.look(probe, 10.0)

    assert state_of(track) == "suspect"


def test_a_settled_step_whose_shards_were_rewritten_in_place_is_listed_when_it_is_looked_at_as_a_whole(
    step: Path,
) -> None:
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    before = track.answer
    at = os.stat(step / "__0_0.distcp").st_mtime_ns + 1000  # and still no newer than `.metadata`
    (step / "__0_0.distcp").write_bytes((step / "__0_0.distcp").read_bytes())
    os.utime(step / "__0_0.distcp", ns=(at, at))
    track.look(probe, 10.0)
    assert track.answer is before, "two stats say nothing of it"

    track.look(probe, 20.0, whole=True)
    track.look(probe, 30.0)
    assert (state_of(track), track.answer != before) == ("complete", True)


def test_a_shard_that_another_tool_replaced_shows_in_the_directorys_own_stat(step: Path) -> None:
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    before = track.answer
    mirror(step, saved_again(step, seconds=0.0001), "__0_0.distcp")
    assert not track.is_as_it_was()

    track.look(probe, 10.0)
    track.look(probe, 20.0)
    assert (state_of(track), track.answer != before) == ("complete", True)


def test_shards_that_arrive_under_the_same_metadata_are_believed_after_ten_seconds_of_rest(step: Path) -> None:
    track, probe = StepTrack(str(step)), Probe()
    shard = step / "__0_0.distcp"
    own = shard.stat().st_mtime_ns
    os.utime(shard, ns=(own, own - 600_000_000_000))  # another save's, as it lay here before
    track.look(probe, 0.0)
    (step / "arrived").write_bytes(shard.read_bytes())
    os.utime(step / "arrived", ns=(own, own))
    os.replace(step / "arrived", shard)
    states = []
    for now in (10.0, 19.9, 20.0):
        track.look(probe, now)
        states.append(state_of(track))

    assert states == ["settling", "settling", "complete"]


def test_a_step_in_hf_form_that_is_saved_again_in_place_is_noticed(checkpoints: Path, tmp_path: Path) -> None:
    step = Path(shutil.copytree(BY_NAME["last_in_hf"].step(checkpoints), tmp_path / "step-2"))
    track, probe = StepTrack(str(step)), Probe()
    track.look(probe, 0.0)
    before, folder = track.answer, os.stat(step).st_mtime_ns
    assert state_of(track) == "complete"
    for path in (*sorted(step.glob("*.safetensors")), step / "model.safetensors.index.json"):
        at = os.stat(path).st_mtime_ns + 600_000_000_000
        path.write_bytes(path.read_bytes())
        os.utime(path, ns=(at, at))
    assert os.stat(step).st_mtime_ns == folder
    assert not track.is_as_it_was()
    track.look(probe, 10.0)

    assert state_of(track) == "complete"
    assert track.answer is not None
    assert before is not None
    assert track.answer.save_id != before.save_id
