"""What a job asks for grows with the step, is what the configuration says, and doubles where it was not enough."""

from daemon.config.settings import Settings
from daemon.config.slurm_settings import Slurm
from daemon.runners.slurm import resources

GB = 1_000_000_000
S = Settings()


def test_a_job_asks_by_the_steps_size() -> None:
    small, large = resources.reckon(1 * GB, S), resources.reckon(470 * GB, S)

    assert (small.cpus, small.memory, small.seconds) == (4, (3 << 30) + GB // 100, 960.0)
    assert (large.memory, large.seconds) == ((3 << 30) + 4_700_000_000, 10_320.0)


def test_what_the_configuration_says_holds() -> None:
    settings = Settings(slurm=Slurm(cpus=2, memory=GB, time=90.0))

    assert resources.reckon(470 * GB, settings) == resources.Needs(2, GB, 120.0)


def test_time_is_whole_minutes_with_room_for_the_hooks_that_run_in_the_job() -> None:
    settings = Settings(before_publish=("a",), sign=("b",), hook_timeout=600.0, slurm=Slurm(rate=GB))

    assert resources.reckon(60 * GB, settings).seconds == 900 + 60 + 1200


def test_each_job_that_had_too_little_doubles_the_next_up_to_a_bound() -> None:
    base = resources.reckon(GB, S)

    assert resources.reckon(GB, S, too_small=1) == base._replace(memory=2 * base.memory)
    assert resources.reckon(GB, S, too_short=2).seconds == 3720  # 4 x 920 s, in whole minutes
    assert resources.reckon(GB, S, too_small=40).memory == 16 * base.memory
    assert resources.reckon(GB, S, too_short=40).seconds <= 17 * base.seconds
