"""What is kept of a failure says which path it met, for whoever asks `status` weeks later."""

import pytest

from converter.common.errors import Retry
from daemon.ledger.records import Outcome
from daemon.queue.attempt_results import reason_of

STEP = "/r/a/step-4"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/r/a/config.json", "not allowed: /r/a/config.json"),
        (f"{STEP}/__0_0.distcp", f"not allowed: {STEP}/__0_0.distcp"),
        ("/r/a/.dcp2hf-4.lock", "not allowed: /r/a"),
        ("/r/a/.dcp2hf-4.19aa9b4301ec9149.staging/model.safetensors", "not allowed: /r/a"),
        (STEP, "not allowed"),
        ("", "not allowed"),
    ],
)
def test_a_failures_reason_names_the_path_that_failed(path: str, said: str) -> None:
    for retry in (Retry.BACKOFF, Retry.NEVER, Retry.SPACE):
        assert reason_of(Outcome(result="failed", message="not allowed", path=path, retry=retry), STEP) == said


def test_a_path_that_the_message_has_is_not_said_twice() -> None:
    failed = Outcome(result="failed", message="/assets is gone", path="/assets", retry=Retry.NEVER)

    assert reason_of(failed, STEP) == "/assets is gone"


def test_a_hook_that_fails_fails_on_no_path() -> None:
    failed = Outcome(result="failed", error="HookFailed", message="exit code 3", path=f"{STEP}-hf")

    assert reason_of(failed, STEP) == "exit code 3"


def test_what_the_scanner_says_too_is_left_as_it_says_it() -> None:
    for retry in (Retry.CONFIG, Retry.UNSUPPORTED, Retry.VANISHED):
        assert reason_of(Outcome(result="failed", message="half-written", path="/r/a/c.json", retry=retry), STEP) == (
            "half-written"
        )
