"""What is said of a run is said of all its steps: it does not come and go with the step that was looked at last."""

import io

from daemon.config.settings import Settings
from daemon.host import logs
from daemon.ledger import database
from daemon.ledger.ledger import Ledger
from daemon.queue.log_events import News
from daemon.scanner.messages import Published
from tests.unit.daemon.conftest import facts, run_facts

BESIDE = Published(place="alongside", ours=True, up_to_date=True, save_id="save-1")
BELOW = Published(place="subdirectory", ours=True, up_to_date=True, save_id="save-1")


def test_one_export_beside_its_step_is_a_hazard_of_the_whole_run_until_it_is_gone() -> None:
    ledger, text = Ledger(database.in_memory()), io.StringIO()
    news, settings = News(ledger, logs.logger(text, environ={}), once=False), Settings(output="subdirectory")

    def report(step: int, *published: Published) -> dict[str, int]:
        news.retention("/r", facts(step, published=published), run_facts(), settings)
        return ledger.retention()

    assert report(10, BELOW) == {}
    assert report(20, BESIDE) == {"/r/a": 4}
    assert report(30, BELOW) == report(40) == {"/r/a": 4}
    news.scanned("/r")
    assert ledger.retention() == {"/r/a": 4}
    assert report(20, BELOW) == {"/r/a": 4}, "until every step of the root was reported"
    news.scanned("/other")
    assert ledger.retention() == {"/r/a": 4}
    news.scanned("/r")
    assert ledger.retention() == {}
    report(20, BESIDE)
    news.step_gone("/r/a", 20)
    news.scanned("/r")
    assert ledger.retention() == {}
    assert text.getvalue().count("retention_hazard") == 1


def test_after_a_restart_a_hazard_is_there_until_all_steps_were_reported() -> None:
    ledger, settings = Ledger(database.in_memory()), Settings(output="subdirectory")
    ledger.note_retention("/r/a", 4)
    news = News(ledger, logs.logger(io.StringIO(), environ={}), once=False)

    news.retention("/r", facts(10, published=(BELOW,)), run_facts(), settings)
    assert ledger.retention() == {"/r/a": 4}
    news.scanned("/r")
    assert ledger.retention() == {}
