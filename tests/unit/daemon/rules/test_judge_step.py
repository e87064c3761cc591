"""The state of a step follows from what is seen and what is remembered, and from nothing else."""

from typing import Any

import pytest

from daemon.config.settings import Settings
from daemon.ledger.records import Block, State
from daemon.rules import judge_step
from daemon.rules.judge_step import Judgement, judge
from daemon.scanner.messages import Published, Run
from tests.unit.daemon.conftest import facts, row, run_facts, with_

S = Settings()
OURS = Published(place="alongside", ours=True, up_to_date=True, save_id="save-1")
STALE = Published(place="alongside", ours=True, up_to_date=False, save_id="save-0")
FOREIGN = Published(place="alongside", ours=False, foreign=("notes.txt",))
NO_CONFIG = Run(run="/r/a", name="a", error="RunConfigMissing", message="no run config", hint="name it")


def refused(*said: str, config: str = "0" * 64) -> Block:
    """Why the run of `run_facts` was refused, by its run config."""
    return Block(*said, config=config)


def state(*args: object, **kwargs: object) -> State:
    return judge(*args, **{"now": 1000.0} | kwargs).state  # type: ignore[arg-type]


def test_a_complete_step_is_pending() -> None:
    assert judge(facts(), run_facts(), None, None, S, now=0.0) == Judgement(State.PENDING)


def test_an_up_to_date_directory_in_either_place_is_done() -> None:
    below = Published(place="subdirectory", ours=True, up_to_date=True, save_id="save-1")

    assert state(facts(published=(OURS,)), run_facts(), None, None, S) == State.DONE
    assert state(facts(published=(below,)), run_facts(), None, None, S) == State.DONE


def test_a_directory_of_an_older_save_is_converted_again() -> None:
    assert state(facts(published=(STALE,)), run_facts(), None, None, S) == State.PENDING


def test_what_is_being_written_is_incomplete_and_waits() -> None:
    assert state(facts(state="incomplete"), run_facts(), None, None, S) == State.INCOMPLETE
    assert state(facts(state="settling"), run_facts(), None, None, S) == State.INCOMPLETE


def test_a_copy_is_suspect_until_a_person_accepts_it() -> None:
    judged = judge(facts(state="suspect"), run_facts(), row(), None, S, now=0.0)

    assert judged.state == State.SUSPECT
    assert "dcp2hfd retry /r/a/step-10 --accept-copy" in judged.hint
    assert state(facts(state="suspect"), run_facts(), row(accept_copy=True), None, S) == State.PENDING


def test_a_damaged_step_is_quarantined_without_an_attempt() -> None:
    assert state(facts(state="damaged", error="StepDamaged"), run_facts(), None, None, S) == State.QUARANTINED


@pytest.mark.parametrize("answer", ["unsupported", "no_model"])
def test_what_cannot_be_converted_is_unsupported_and_no_alarm(answer: str) -> None:
    assert state(facts(state=answer), run_facts(), None, None, S) == State.UNSUPPORTED


def test_a_run_found_unsupported_is_not_tried_step_by_step() -> None:
    judged = judge(
        facts(), run_facts(), None, refused("RoutingDrift", "bias is not zero", "allow_routing_drift"), S, now=0.0
    )

    assert (judged.state, judged.error) == (State.UNSUPPORTED, "RoutingDrift")


def test_somebody_elses_directory_is_left_alone_unless_told_otherwise() -> None:
    judged = judge(facts(published=(FOREIGN,)), run_facts(), None, None, S, now=0.0)

    assert judged.state == State.FOREIGN
    assert "notes.txt" in judged.reason
    assert (
        state(facts(published=(FOREIGN,)), run_facts(), None, None, with_(S, overwrite_foreign=True)) == State.PENDING
    )


def test_somebody_elses_directory_where_nothing_is_published_is_no_obstacle() -> None:
    assert state(facts(published=(FOREIGN,)), run_facts(), None, None, with_(S, output="subdirectory")) == State.PENDING


def test_an_empty_directory_is_nobodys_and_is_published_over() -> None:
    empty = Published(place="alongside", ours=False, empty=True)

    assert state(facts(published=(empty,)), run_facts(), None, None, S) == State.PENDING
    done = row(state=State.DONE, wish="bfloat16/50000000000")
    assert state(facts(published=(empty,)), run_facts(), done, None, S) == State.REMOVED, "rm -r is not at its end"


def test_a_removed_directory_stays_removed_until_once_or_retry() -> None:
    done = row(state=State.DONE, wish="bfloat16/50000000000")

    assert state(facts(), run_facts(), done, None, S) == State.REMOVED
    assert state(facts(), run_facts(), row(state=State.REMOVED), None, S) == State.REMOVED
    assert state(facts(), run_facts(), done, None, S, fresh=True) == State.PENDING
    assert state(facts(), run_facts(), row(state=State.PENDING), None, S) == State.PENDING, "as retry leaves it"


def test_a_directory_that_looked_foreign_while_it_was_being_removed_stays_removed() -> None:
    """`rm -r` may take the manifest first."""
    half = row(state=State.FOREIGN, wish="bfloat16/50000000000")

    assert state(facts(published=(FOREIGN,)), run_facts(), half, None, S) == State.FOREIGN
    assert state(facts(), run_facts(), half, None, S) == State.REMOVED
    assert state(facts(), run_facts(), row(state=State.FOREIGN), None, S) == State.PENDING, "it never was ours"


def test_quarantine_lasts_for_this_save_until_once_or_retry() -> None:
    held = row(state=State.QUARANTINED, error="NonFiniteTensor")

    assert state(facts(), run_facts(), held, None, S) == State.QUARANTINED
    assert state(facts(), run_facts(), held, None, S, fresh=True) == State.PENDING
    assert state(facts(), run_facts(), None, None, S) == State.PENDING, "another save has no row"


def test_quarantine_for_want_of_a_run_config_ends_when_there_is_one() -> None:
    held = row(state=State.QUARANTINED, error="RunConfigMissing", complete_at=0.0)

    assert state(facts(), NO_CONFIG, held, None, S) == State.QUARANTINED
    assert state(facts(), run_facts(), held, None, S) == State.PENDING


def test_a_missing_run_config_is_waited_for_then_given_up() -> None:
    early = judge(facts(), NO_CONFIG, row(complete_at=1000.0), None, S, now=1010.0)

    assert (early.state, early.not_before) == (State.PENDING, 1000.0 + S.config_grace)
    assert state(facts(), NO_CONFIG, row(complete_at=1000.0), None, S, now=1000.0 + S.config_grace) == State.QUARANTINED
    assert state(facts(), NO_CONFIG, row(complete_at=1000.0), None, S, fresh=True) == State.PENDING, (
        "--once does not wait"
    )


def test_a_failed_step_waits_for_its_next_attempt() -> None:
    judged = judge(
        facts(), run_facts(), row(state=State.FAILED, next_attempt=2000.0, error="MachineFailure"), None, S, now=1000.0
    )

    assert (judged.state, judged.not_before, judged.is_wanted) == (State.FAILED, 2000.0, True)


def test_what_the_converter_called_done_is_not_asked_again_as_long_as_the_wish_is_the_same() -> None:
    """A step may have a run config of its own, of which only the converter knows."""
    ours = Published(place="alongside", ours=True, up_to_date=False, save_id="save-1")
    done = row(state=State.DONE, wish=judge_step.wish(run_facts(), S))

    assert state(facts(published=(ours,)), run_facts(), done, None, S) == State.DONE
    assert state(facts(published=(ours,)), run_facts(), done, None, with_(S, dtype="float32")) == State.PENDING


@pytest.mark.parametrize(
    ("keep", "place"), [(2, "subdirectory"), (3, "alongside"), (None, "alongside"), (0, "alongside")]
)
def test_auto_publishes_below_where_siblings_would_leave_no_checkpoint(keep: int | None, place: str) -> None:
    assert judge_step.place(facts(), run_facts(keep_latest_k=keep), S) == place


def test_auto_publishes_below_where_the_export_has_an_index() -> None:
    assert judge_step.place(facts(model_elements=100), run_facts(), with_(S, max_shard_size=200)) == "alongside"
    assert judge_step.place(facts(model_elements=101), run_facts(), with_(S, max_shard_size=200)) == "subdirectory"


def test_a_configured_output_is_obeyed() -> None:
    assert judge_step.folder(facts(), run_facts(keep_latest_k=2), with_(S, output="alongside")) == "/r/a"
    assert judge_step.folder(facts(), run_facts(), with_(S, output="subdirectory")) == "/r/a/hf"


@pytest.mark.parametrize(("keep", "left"), [(2, 0), (3, 1), (4, 1), (5, 2), (10, 4)])
def test_what_remains_of_keep_latest_k_beside_siblings_is_what_was_measured(keep: int, left: int) -> None:
    assert judge_step.remaining(keep) == left


def test_a_run_refused_for_its_balancing_bias_is_taken_up_once_that_is_allowed() -> None:
    bias, lora = (
        refused("RoutingDrift", "a bias", "allow_routing_drift"),
        refused("UnsupportedModel", "LoRA", "merge it"),
    )
    allowed = with_(S, allow_routing_drift=True)

    assert state(facts(), run_facts(), None, bias, S) == State.UNSUPPORTED
    assert state(facts(), run_facts(), None, bias, allowed) == State.PENDING
    assert state(facts(), run_facts(), None, lora, allowed) == State.UNSUPPORTED


@pytest.mark.parametrize("allowed", [{"ignore_tensors": ("ema.*",)}, {"untie": True}, {"allow_routing_drift": True}])
def test_a_run_refused_is_judged_anew_once_other_exceptions_are_allowed_and_only_then(allowed: dict[str, Any]) -> None:
    asked = with_(S, ignore_tensors=("rng_state",))
    block = refused("UnknownTensor", "ema.norm.weight", "ignore_tensors", judge_step.exceptions(asked))

    assert state(facts(), run_facts(), None, block, asked) == State.UNSUPPORTED
    assert state(facts(), run_facts(), None, block, with_(asked, **allowed)) == State.PENDING
    assert state(facts(), run_facts(), None, block, with_(asked, poll_interval=3.0)) == State.UNSUPPORTED


def test_a_step_whose_listing_is_not_the_one_that_was_converted_is_converted_again_whatever_the_manifest_says() -> None:
    done = row(state=State.DONE, wish=judge_step.wish(run_facts(), S), converted="another")
    judged = judge(facts(published=(OURS,)), run_facts(), done, None, S, now=0.0)

    assert (judged.state, judged.reason) == (State.PENDING, "its files are not those that were converted")
    assert state(facts(published=(OURS,)), run_facts(), row(state=State.DONE, converted="f"), None, S) == State.DONE
    assert state(facts(published=(OURS,)), run_facts(), row(state=State.DONE), None, S) == State.DONE, "not known"
    assert state(facts(state="suspect", published=(OURS,)), run_facts(), done, None, S) == State.SUSPECT
    assert state(facts(), run_facts(), done, None, S) == State.REMOVED, "and what a person removed stays removed"


def test_quarantine_is_of_the_files_that_were_refused() -> None:
    held = row(state=State.QUARANTINED, error="PayloadCorrupt", refused="another")

    assert state(facts(), run_facts(), held, None, S) == State.PENDING
    assert state(facts(), run_facts(), row(state=State.QUARANTINED, refused="f"), None, S) == State.QUARANTINED


def test_copies_are_accepted_where_the_configuration_accepts_them() -> None:
    assert state(facts(state="suspect"), run_facts(), None, None, with_(S, accept_copies=True)) == State.PENDING


def test_a_run_refused_is_judged_anew_with_another_run_config_but_not_while_its_config_cannot_be_read() -> None:
    other = refused("UnsupportedModel", "LoRA", "merge it", config="1" * 64)

    assert state(facts(), run_facts(), None, other, S) == State.PENDING
    assert state(facts(), NO_CONFIG, None, other, S) == State.UNSUPPORTED
    assert state(facts(), run_facts(), None, Block("UnsupportedModel", "LoRA", "merge it"), S) == State.PENDING, (
        "a ledger of an earlier release does not know of which"
    )
