"""A remark is said once, and whoever gives cause for remarks without end does not fill the scanner's memory."""

from __future__ import annotations

from daemon.scanner import messages, reporter
from daemon.scanner.reporter import Voice


def test_a_remark_is_said_once_for_each_path_and_text_and_the_oldest_of_very_many_is_forgotten() -> None:
    said: list[messages.FromScanner] = []
    speaker = Voice(said.append, lambda: 0.0)
    for number in (1, 1, *range(2, reporter.MOST_SAID + 1), 1):
        speaker.say("link_not_followed", f"/r/{number}", "a link")
    assert len(said) == reporter.MOST_SAID

    speaker.say("link_not_followed", "/r/another", "a link")
    speaker.say("link_not_followed", "/r/2", "a link")
    speaker.say("link_not_followed", "/r/1", "a link")
    assert len(said) == reporter.MOST_SAID + 2
    assert len(speaker._said) == reporter.MOST_SAID
