"""One frozen Settings from file, environment and command line; whatever is not understood is refused by name."""

from pathlib import Path

import pytest

from daemon.config import load as config
from daemon.config import schema, settings
from daemon.config.load import SettingsError


def load(
    tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, roots: tuple[str, ...] = ()
) -> settings.Settings:
    file = tmp_path / "dcp2hf.toml"
    file.write_text(text)
    return config.load(config=str(file), environ=environ or {}, roots=roots)


@pytest.mark.parametrize("key", ["before_publish", "sign", "on_success", "on_failure"])
def test_a_command_that_is_text_is_refused_with_what_to_write(key: str, tmp_path: Path) -> None:
    for text, environ in ((f'{key} = "curl x"', {}), ("", {f"DCP2HF_{key.upper()}": "curl x"})):
        with pytest.raises(SettingsError, match=r"no shell reads it: .*\[\"sh\", \"-c\", \"…\"\]"):
            load(tmp_path, text, environ)
    with pytest.raises(SettingsError, match=f"{key} in .*absolute path"):
        load(tmp_path, f'{key} = ["./notify"]')
    loaded = load(tmp_path, '[root."/r"]\n' + f'{key} = ["sh", "-c", "curl x"]')
    assert getattr(loaded.for_root("/r"), key) == ("sh", "-c", "curl x")


def test_everything_has_a_default() -> None:
    loaded = config.load(environ={}, default="/nonexistent/dcp2hf.toml")

    assert (loaded.roots, loaded.poll_interval, loaded.workers, loaded.max_attempts) == ((), 10.0, 1, 5)


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    text = 'roots = ["/file"]\nworkers = 2\npoll_interval = "3s"'
    environ = {"DCP2HF_ROOTS": '["/variable"]', "DCP2HF_WORKERS": "4"}

    assert load(tmp_path, text, environ).roots == ("/variable",)
    assert load(tmp_path, text, environ).workers == 4
    assert load(tmp_path, text, environ).poll_interval == 3.0
    assert load(tmp_path, text, environ, roots=("/argument",)).roots == ("/argument",)


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"unknown key 'pol_interval' in .*dcp2hf.toml; did you mean 'poll_interval'"
    ):
        load(tmp_path, "pol_interval = 3")


def test_an_unknown_variable_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="DCP2HF_WORKER; did you mean 'DCP2HF_WORKERS'"):
        load(tmp_path, environ={"DCP2HF_WORKER": "2"})


@pytest.mark.parametrize("value", ["127.0.0.1:9469", "[::1]:9469", "0.0.0.0:80", "login1.cluster:65535", ""])
def test_an_address_to_listen_on_is_a_host_and_a_port_or_nothing(tmp_path: Path, value: str) -> None:
    assert load(tmp_path, f'metrics_address = "{value}"').metrics_address == value


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('metrics_address = "9469"', "metrics_address"),
        ('metrics_address = "127.0.0.1:"', "metrics_address"),
        ('metrics_address = "127.0.0.1:65536"', "metrics_address"),
        ('metrics_address = "::1:9469"', "metrics_address"),
        ('metrics_address = "http://127.0.0.1:9469"', "metrics_address"),
        ("metrics_address = 9469", "metrics_address"),
        ("workers = 0", "workers"),
        ('workers = "many"', "workers"),
        ('output = "beside"', "output"),
        ('poll_interval = "10 parsecs"', "poll_interval"),
        ("poll_interval = true", "poll_interval"),
        ('roots = "/a"', "roots"),
        ("nice = 40", "nice"),
        ('root = "/a"', "root"),
    ],
)
def test_a_wrong_value_is_refused_naming_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(SettingsError, match=key):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("DCP2HF_POLL_INTERVAL", "2min", 120.0),
        ("DCP2HF_POLL_INTERVAL", "2.5", 2.5),
        ("DCP2HF_MAX_SHARD_SIZE", "5GB", 5_000_000_000),
        ("DCP2HF_MAX_SHARD_SIZE", "2GiB", 2 << 30),
        ("DCP2HF_OVERWRITE_FOREIGN", "true", True),
        ("DCP2HF_THREADS", "3", 3),
        ("DCP2HF_THREADS", "auto", "auto"),
        ("DCP2HF_MIN_STEP", "100", 100),
        ("DCP2HF_PATH_MAP", '{"/old": "/new"}', {"/old": "/new"}),
        ("DCP2HF_PATH_MAP", '["/old=/new"]', {"/old": "/new"}),
        ("DCP2HF_RUN_CONFIG_NAMES", '["train.json"]', ("train.json",)),
    ],
)
def test_every_key_has_an_environment_twin(tmp_path: Path, variable: str, text: str, value: object) -> None:
    loaded = load(tmp_path, environ={variable: text})

    assert getattr(loaded, variable.removeprefix("DCP2HF_").lower()) == value


def test_a_list_in_a_variable_that_is_no_json_is_refused_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r'DCP2HF_ROOTS must be JSON, such as \["/a", "/b"\]'):
        load(tmp_path, environ={"DCP2HF_ROOTS": "/a:/b"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('roots = "/r"', r'roots in .*dcp2hf\.toml must be a list of texts, such as \["/a", "/b"\]'),
        ("roots = 3", r"roots in .* must be a list of texts"),
        ("roots = [3]", r"roots in .* must be a list of texts"),
        ('logs_roots = "/l"', r"logs_roots in .* must be a list of texts"),
        ('root = ["/r"]', r"root in .* must be tables such as .*; did you mean 'roots'\?"),
        ('dtype = "bf16"', r"Invalid enum value 'bf16', not one of auto, float32, bfloat16, float16"),
        ('path_map = "/a=/b"', r"path_map .*: Expected a table, got `str`"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_what_it_should_be(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(tmp_path, text)


def test_a_roots_table_holds_for_that_root_only_and_names_a_root(tmp_path: Path) -> None:
    loaded = load(
        tmp_path, 'dtype = "float32"\nroots = ["/a"]\n[root."/b"]\ndtype = "bfloat16"\npoll_interval = "1min"'
    )

    assert loaded.roots == ("/a", "/b")
    assert loaded.for_root("/a").dtype == "float32"
    assert loaded.for_root("/b").dtype == "bfloat16"
    assert loaded.for_root("/b").poll_interval == 60.0


def test_tables_of_roots_that_the_command_line_does_not_name_are_left_out(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[root."/a"]\ndtype = "bfloat16"\n[root."/b"]\ndtype = "float16"', roots=("/a",))

    assert loaded.roots == ("/a",)
    assert loaded.for_root("/a").dtype == "bfloat16"


def test_a_key_of_the_whole_daemon_is_refused_in_a_roots_table(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'workers' holds for the whole daemon"):
        load(tmp_path, '[root."/a"]\nworkers = 2')


def test_a_wrong_value_in_a_roots_table_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="every"):
        load(tmp_path, '[root."/a"]\nevery = 0')


def test_a_root_inside_another_is_refused_since_steps_would_be_watched_twice(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="/a/b lies inside /a"):
        load(tmp_path, 'roots = ["/a", "/a/b"]')


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    assert load(tmp_path, 'roots = ["runs"]').roots == (str(tmp_path / "runs"),)


def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"not TOML: .*dcp2hf\.toml"):
        load(tmp_path, "roots = [")


def test_a_named_config_file_must_exist() -> None:
    with pytest.raises(SettingsError, match=r"cannot be read: /nonexistent\.toml"):
        config.load(environ={"DCP2HF_CONFIG": "/nonexistent.toml"})


def test_the_state_folder_is_systemds_then_the_users(tmp_path: Path) -> None:
    loaded = config.load(environ={}, default="/nonexistent")
    environ = {"STATE_DIRECTORY": "/var/lib/private/x:/y", "XDG_STATE_HOME": "/home/u/state"}

    assert config.state_dir(loaded, environ=environ, table="") == Path("/var/lib/private/x")


def test_a_state_folder_on_a_network_file_system_is_refused_by_name(tmp_path: Path) -> None:
    loaded = config.load(environ={"DCP2HF_STATE_DIR": "/mnt/nfs/state"}, default="/nonexistent")
    table = "30 1 0:1 / / rw - ext4 /dev/sda rw\n31 30 0:2 / /mnt/nfs rw - nfs4 server:/export rw\n"

    with pytest.raises(SettingsError, match=r"state_dir /mnt/nfs/state lies on nfs4 \(/mnt/nfs\).*set state_dir"):
        config.state_dir(loaded, environ={}, table=table)


def test_the_documented_table_has_every_key_with_its_default_and_meaning() -> None:
    table = schema.table()

    for key in set(schema.KEYS) - {"root"}:
        line = next(line for line in table.splitlines() if line.startswith(f"| `{key}` |"))
        assert len(line.split("|")[4].strip()) > 20, key
    assert '| `poll_interval` | `"10s"` | yes |' in table
    assert '| `max_shard_size` | `"50GB"` | yes |' in table
