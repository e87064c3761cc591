"""Owns the run config: where it is, whether a file is one, and which values are used.

Uses only the standard library. Two generations are read into one RunConfig: torchtitan 0.2's `JobConfig.to_dict()`, and
0.3's `Trainer.Config.to_dict()` with the names of its main branch until 2026-09. The TOML of 0.2 is read if a person
names one. A launcher writes the file after the first step appears, and not atomically. So a missing or half-written run
config is worth waiting for (errors.Retry.CONFIG).
"""

import hashlib
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.common import errors
from converter.common.files import CONFIG_LIMIT, REFUSED, parse_json, read_regular

NAMES = ("config.json", "job_config.json")
DTYPES = ("float32", "bfloat16", "float16")
_TOML_DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"name": "llama3", "flavor": "debugmodel"},
    "training": {"dtype": "float32", "seq_len": 2048},
    "checkpoint": {"keep_latest_k": 10},
}
"""What JobConfig of torchtitan 0.2.0 and 0.2.2 says where a TOML does not. (Its `hf_assets_path` lies in a checkout.)"""
_MOST = 1 << 31
"""Counts and lengths of a real run are less."""
_TOKENIZER_KEYS = (
    ("model", "tokenizer_override"),
    ("molgen_data", "tokenizer_override"),
    ("tokenizer", "path"),
    ("model", "tokenizer_path"),
    ("model", "hf_assets_path"),
)
"""torchtitan 0.2: the first that is set names the tokenizer."""
_LENGTH_KEYS = (
    ("training", "max_context_length"),
    ("training", "seq_len"),
    ("model_spec", "max_context_length"),
    ("model_spec", "seq_len"),
)
"""The maximum sequence length: `training.seq_len` up to 0.3.0, `training.max_context_length` on TorchTitan's main branch
since 2026-08-20 (#4121), and in `model_spec` since #4328. The first that is set counts."""
DIMENSIONS = {
    "dim": "hidden_size", "hidden_size": "hidden_size", "n_layers": "num_hidden_layers", "num_hidden_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads", "num_attention_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads",
    "num_key_value_heads": "num_key_value_heads", "head_dim": "head_dim", "hidden_dim": "intermediate_size",
    "intermediate_size": "intermediate_size", "rope_theta": "rope_theta", "norm_eps": "rms_norm_eps", "rms_norm_eps": "rms_norm_eps",
    "enable_weight_tying": "tie_word_embeddings", "tie_word_embeddings": "tie_word_embeddings", "moe_inter_dim": "moe_intermediate_size",
    "moe_intermediate_size": "moe_intermediate_size", "num_experts": "num_experts", "top_k": "num_experts_per_tok",
    "num_experts_per_tok": "num_experts_per_tok",
}  # fmt: skip
"""Keys of a 0.2 `model` section that record the architecture, and HF's word for each."""


@dataclass(frozen=True)
class RunConfigConflict:
    """Two run configs that differ in what matters; the first was used (see facts: the preferred one is the older)."""

    other: Path
    other_sha256: str
    differs: tuple[str, ...]


@dataclass(frozen=True)
class RunConfig:
    """What a run recorded of itself."""

    path: Path
    sha256: str
    generation: str
    """ "0.2" or "0.3"."""
    model_name: str
    flavor: str
    dtype: str
    """The parameters' dtype (`training.dtype`), not the compute dtype."""
    seq_len: int
    keep_latest_k: int | None
    hf_assets_path: str | None
    tokenizer_path: str | None
    dimensions: dict[str, Any] = field(default_factory=dict)
    """0.2: dimensions recorded beside the flavor, in HF's words."""
    model: dict[str, Any] | None = None
    """0.3: `model_spec.model`, the model config layer by layer."""
    overrides: tuple[str, ...] = ()
    """0.3: `override.imports`: code that changed the model config after it was written."""
    padded_vocab_size: int | None = None
    known_tokens: int | None = None
    """Base and added tokens, where the run recorded both."""
    conflict: RunConfigConflict | None = None
    assumed: tuple[str, ...] = ()
    """What the record leaves open, and how it was read: the manifest lists it as not checked independently."""

    def to_json(self) -> dict[str, Any]:
        """As it crosses the process boundary; the conflict is the parent's to tell."""
        return vars(self) | {"path": str(self.path), "conflict": None}

    @staticmethod
    def from_json(said: dict[str, Any]) -> "RunConfig":
        """The other way."""
        lists = {key: tuple(said[key]) for key in ("overrides", "assumed")}
        return RunConfig(**said | lists | {"path": Path(said["path"])})


def candidates(step: Path, names: Sequence[str] = (), logs_roots: Sequence[Path] = ()) -> Iterator[Path]:
    """Where a run config may lie, in the order in which the first hit wins."""
    run = step.parent
    for folder in (step, run, run.parent):
        for name in (*NAMES, *names):
            yield folder / name
    for logs_root in logs_roots:
        for run_name in dict.fromkeys((run.name, run.parent.name)):
            for name in ("job_config.json", *names):
                yield logs_root / run_name / name


def find(
    step: Path, *, names: Sequence[str] = (), logs_roots: Sequence[Path] = (), file: Path | None = None
) -> RunConfig:
    """The run config of a step; `file` (a person's choice) is the only candidate if given.

    Raises RunConfigMissing, RunConfigUnreadable where the file that would win does not parse, or MachineFailure where it
    cannot be read now.
    """
    looked = []
    found: list[RunConfig] = []
    for path in [file] if file else candidates(step, names, logs_roots):
        looked.append(path)
        try:
            payload = read_regular(path, limit=CONFIG_LIMIT, follow=file is not None)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if found:  # only what it says beside the one that is used is not known
                continue
            if error.errno not in REFUSED:
                raise errors.from_oserror(error, path) from None
            raise errors.RunConfigUnreadable(
                f"run config is not read ({error.strerror})",
                path=path,
                hint="links inside a run are not followed: name the file itself with --run-config",
            ) from None
        try:
            said, assumed = _parse_toml(payload) if path.suffix == ".toml" else (parse_json(payload), ())
        except ValueError as error:
            if found:
                continue
            raise errors.RunConfigUnreadable(
                f"run config is no {'TOML' if path.suffix == '.toml' else 'JSON'} ({error}): half-written, or another file",
                path=path,
                hint="wait for the launcher, or name the right one with --run-config",
            ) from None
        if not _is_run_config(said):
            if file:
                raise errors.RunConfigUnreadable(
                    "the file is no TorchTitan run config", path=path, hint="name another with --run-config"
                )
            continue
        found.append(_read(path, payload, said, assumed))
        if len(found) == 2:
            break
    if not found:
        raise errors.RunConfigMissing(
            missing(looked),
            path=step,
            hint="name it with --run-config, or its folder with --logs-root",
        )
    if len(found) == 2 and (differs := _differs(found[0], found[1])):
        return RunConfig(**{**vars(found[0]), "conflict": RunConfigConflict(found[1].path, found[1].sha256, differs)})
    return found[0]


def missing(looked: Iterable[Path]) -> str:
    """What is said where none of these places has a run config."""
    return f"no run config (looked at {', '.join(dict.fromkeys(map(str, looked)))})"


def _is_run_config(said: Any) -> bool:
    """Whether this is TorchTitan's: a HF model's `config.json` may lie in the same place."""
    return (
        isinstance(said, dict)
        and isinstance(said.get("training"), dict)
        and (isinstance(said.get("model_spec"), dict) or isinstance(said.get("model"), dict))
    )


def _parse_toml(payload: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A TOML with the defaults of what it leaves out, and what was assumed with it. Raises ValueError for no TOML."""
    try:
        said = tomllib.loads(payload.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(said.get("model"), dict):
        return said, ()
    missing = [
        f"{section}.{key} {default}"
        for section, defaults in _TOML_DEFAULTS.items()
        for key, default in defaults.items()
        if key not in _dict(said, section)
    ]
    for section, defaults in _TOML_DEFAULTS.items():
        said[section] = defaults | _dict(said, section)
    text = "the run config is a TOML, which does not hold what the command line changed"
    return said, (f"{text}; by default {', '.join(missing)}" if missing else text,)


def _read(path: Path, payload: bytes, said: dict[str, Any], assumed: tuple[str, ...]) -> RunConfig:
    training, checkpoint = said["training"], _dict(said, "checkpoint")
    dtype = training.get("dtype", "float32")
    lengths = {
        f"{section}.{key}": value
        for section, key in _LENGTH_KEYS
        if (value := _dict(said, section).get(key)) is not None
    }
    length, seq_len = next(iter(lengths.items()), ("training.seq_len or training.max_context_length", None))
    problem = None
    if dtype not in DTYPES:
        problem = f"training.dtype is {dtype!r}, not one of {', '.join(DTYPES)}"
    if type(seq_len) is not int or not 0 < seq_len < _MOST:
        problem = f"{length} is {seq_len!r}"[:200]
    for key, value in _dict(said, "model").items():
        if key in DIMENSIONS and value is not None and not isinstance(value, int | float):
            problem = f"model.{key} is {value!r}"[:200]
    imports = _dict(said, "override").get("imports") or []
    if not isinstance(imports, list):
        problem = f"override.imports is {imports!r}"[:200]
    if problem:
        raise errors.RunConfigUnreadable(
            f"run config is not usable: {problem}",
            path=path,
            hint="correct the file, or name another with --run-config",
        )
    keep = checkpoint.get("keep_latest_k")
    common: dict[str, Any] = {
        "path": path, "sha256": hashlib.sha256(payload).hexdigest(), "dtype": dtype, "seq_len": seq_len,
        "keep_latest_k": keep if type(keep) is int and 0 <= keep < _MOST else None,
        "assumed": (*_ambiguous(lengths), *assumed),
    }  # fmt: skip
    if isinstance(said.get("model_spec"), dict):
        spec = said["model_spec"]
        return RunConfig(
            **common, generation="0.3", model_name=_text(spec, "name") or "", flavor=_text(spec, "flavor") or "",
            hf_assets_path=_text(said, "hf_assets_path"), tokenizer_path=_text(said, "hf_assets_path"),
            model=spec["model"] if isinstance(spec.get("model"), dict) else None,
            overrides=tuple(map(str, imports)),
        )  # fmt: skip
    model = said["model"]
    tokenizer = next((text for section, key in _TOKENIZER_KEYS if (text := _text(_dict(said, section), key))), None)
    base, added = model.get("tokenizer_base_vocab_size"), model.get("tokenizer_added_tokens")
    added = len(added) if isinstance(added, list) else added
    padded = model.get("padded_vocab_size", model.get("vocab_size"))
    return RunConfig(
        **common, generation="0.2", model_name=_text(model, "name") or "", flavor=_text(model, "flavor") or "",
        hf_assets_path=_text(model, "hf_assets_path"), tokenizer_path=tokenizer,
        dimensions={DIMENSIONS[key]: value for key, value in model.items() if key in DIMENSIONS and value is not None},
        padded_vocab_size=padded if type(padded) is int else None,
        known_tokens=base + added if type(base) is int and type(added) is int else None,
    )  # fmt: skip


def _ambiguous(lengths: dict[str, Any]) -> tuple[str, ...]:
    """Says which length is used where `training` states two: a model may allow more than it was trained with."""
    trained = {key: value for key, value in lengths.items() if key.startswith("training.")}
    if len({*map(str, trained.values())}) < 2:
        return ()
    stated = ", ".join(f"{key} is {value}"[:100] for key, value in trained.items())
    return (f"two maximum sequence lengths are recorded ({stated}); {next(iter(trained))} is used",)


def _dict(said: dict[str, Any], key: str) -> dict[str, Any]:
    value = said.get(key)
    return value if isinstance(value, dict) else {}


def _text(said: dict[str, Any], key: str) -> str | None:
    value = said.get(key)
    return value if isinstance(value, str) and value else None


def _differs(first: RunConfig, second: RunConfig) -> tuple[str, ...]:
    compared = ("dtype", "seq_len", "flavor", "hf_assets_path", "tokenizer_path")
    return tuple(name for name in compared if getattr(first, name) != getattr(second, name))
