"""Owns base assets and tokenizer: where they are, which of their files are read, and which are published.

Uses only the standard library. The author of the run config chose the recorded paths. In a folder that they name, only
known names are read, as regular files up to a limit. The files are parsed before they are used or copied, and never
quoted.
"""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from converter.common import errors
from converter.common.files import CONFIG_LIMIT, kind, parse_json, write_durably
from converter.publish.manifest import ASSET_NAMES, TEMPLATES
from converter.run.path_permission import Recorded, is_below, read_asset, unreadable
from converter.run.run_config import RunConfig
from converter.run.tokenizer_fit import added_ids, highest_id

_OF_READERS = frozenset({
    "transformers_weights", "fusion_config", "attn_implementation", "_attn_implementation", "experts_implementation",
    "_experts_implementation", "return_dict", "output_attentions", "output_hidden_states",
})  # fmt: skip
"""Keys of a config.json that say how transformers 5 loads and runs a model, not which it is: an export has none of them, or it
would be read from other files than its own, or with kernels that a reader may lack."""
_MOST = 1000
"""Layers, and labels: ten times as many layers as the largest Qwen3 has; transformers 5 lists each at once."""
_NEWER_CLASSES = frozenset({"TokenizersBackend", "PythonBackend", "SentencePieceBackend"})
"""`tokenizer_class` values that transformers 5 writes and 4.x cannot load."""

_PLAIN = {
    "do_sample": (False,), "temperature": (1.0,), "top_k": (0, 50), "top_p": (1.0,), "min_p": (0.0,), "typical_p": (1.0,),
    "repetition_penalty": (1.0,),
}  # fmt: skip
"""Keys of a generation config with the values that change nothing: transformers' defaults, or what switches one off."""


@dataclass(frozen=True)
class Search:
    """How recorded asset paths are followed; the flags of `convert` of the same names."""

    hf_assets: Path | None = None
    tokenizer: Path | None = None
    assets_roots: tuple[Path, ...] = ()
    path_map: tuple[tuple[str, str], ...] = ()
    restrict: tuple[Path, ...] | None = None
    """Recorded paths must lead below one of these, links resolved; None allows any."""


@dataclass(frozen=True)
class Assets:
    """What was read of base assets and tokenizer; nothing of it is written yet."""

    base_path: Path
    base: dict[str, Any]
    """What config.json says; without one, the ids of the tokenizer's special tokens, under config.json's names."""
    generation: bytes | None
    tokenizer_path: Path
    tokenizer: dict[str, bytes]
    """File name (with `additional_chat_templates/`) -> bytes."""
    highest_id: int = -1
    """Of those that `tokenizer.json`, or else `vocab.json`, gives out; -1 without one."""
    added_ids: tuple[int, ...] = ()
    """Of the tokenizer's added tokens past its model's vocabulary."""
    warnings: tuple[str, ...] = field(default=())
    has_config: bool = True


def read(step: Path, run: RunConfig, search: Search, architecture: str = "base") -> Assets:
    """Finds and reads them; with `architecture` "run", config.json may be missing. Raises AssetsMissing or AssetsInvalid,
    naming what was tried."""
    base_path = _folder("base assets", "--hf-assets", search.hf_assets, run.hf_assets_path, step, run, search)
    recorded_by = Recorded(os.stat(step), search.restrict)
    trust = None if search.hf_assets else recorded_by
    payload = read_asset(base_path / "config.json", trust)
    if payload is None and architecture != "run":
        raise errors.AssetsMissing(
            "the base assets have no config.json",
            path=base_path,
            hint="make it from what the run recorded with --architecture run, or put the base model's config.json there "
            "(TorchTitan's scripts/download_hf_assets.py --assets config); another folder: --hf-assets",
        )
    base = {} if payload is None else _json(base_path / "config.json", payload, "--hf-assets")
    base = {key: value for key, value in base.items() if key not in _OF_READERS}
    counts = (base.get("num_hidden_layers", 1), base.get("num_labels") or 1)
    is_believable = all(type(count) is int and 0 < count <= _MOST for count in counts)
    if not is_believable or base.get("per_layer_config"):
        raise errors.AssetsInvalid(
            "the base assets' config has no believable number of layers or labels, or describes layers one by one",
            path=base_path / "config.json",
            hint="name the right folder with --hf-assets, or take num_labels and per_layer_config out of it",
        )
    generation = read_asset(base_path / "generation_config.json", trust)
    if generation is not None:
        _json(base_path / "generation_config.json", generation, "--hf-assets")
    recorded = run.tokenizer_path or run.hf_assets_path
    tokenizer_path = _folder("tokenizer", "--tokenizer", search.tokenizer, recorded, step, run, search)
    tokenizer, highest, added = _tokenizer(tokenizer_path, None if search.tokenizer else recorded_by)
    if payload is None:
        base = special_ids(tokenizer)
    return Assets(
        base_path, base, generation, tokenizer_path, tokenizer, highest, added, has_config=payload is not None
    )


def special_ids(tokenizer: dict[str, bytes]) -> dict[str, int]:
    """Of the tokenizer's BOS, EOS and PAD those that its files tell, under config.json's names."""
    config = parse_json(tokenizer.get("tokenizer_config.json", b"{}"))
    said = parse_json(tokenizer.get("tokenizer.json", b"{}"))
    try:
        ids = dict(said["model"]["vocab"]) | {token["content"]: token["id"] for token in said["added_tokens"]}
    except (KeyError, TypeError, ValueError):
        ids = {}
    found = {}
    for name in ("bos", "eos", "pad") if isinstance(config, dict) else ():
        token = config.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and type(id_ := ids.get(token)) is int:
            found[f"{name}_token_id"] = id_
    return found


def _folder(
    what: str, flag: str, given: Path | None, recorded: str | None, step: Path, run: RunConfig, search: Search
) -> Path:
    if given is not None:
        if (found := _folder_at(given)) is None:
            raise errors.AssetsMissing(f"the {what} folder does not exist", path=given, hint=f"correct {flag}")
        return found
    if not recorded:
        raise errors.AssetsNotConfigured(
            f"the run config names no {what}", path=run.path, hint=f"name the folder with {flag}"
        )
    tried, are = list(dict.fromkeys(_candidates(recorded, step.parent, search))), "is" if what == "tokenizer" else "are"
    refused, denied = False, None
    for path in tried:
        try:
            found = _folder_at(path)
        except PermissionError:
            denied = denied or path
            continue
        if found is None:
            continue
        if search.restrict is not None and not is_below(found, search.restrict):
            refused = True
            continue
        return found
    if refused:
        raise errors.AssetsNotConfigured(
            f"the recorded {what} {ascii(recorded)[:300]} {are} outside what restrict_assets allows",
            path=run.path,
            hint=f"add its folder to --restrict-assets, or name it with {flag}",
        )
    if denied:
        raise unreadable(f"the recorded {what}", denied, flag)
    raise errors.AssetsMissing(
        f"the recorded {what} {ascii(recorded)[:300]} {are} not there (tried {', '.join(ascii(str(p))[1:-1] for p in tried[:8])})",
        path=run.path, hint=f"name the folder with {flag}, or where such paths begin with --assets-root or --path-map",
    )  # fmt: skip


def _folder_at(path: Path) -> Path | None:
    """The folder that a path to a folder, or to a file in it, means; None where there is nothing.

    Raises OSError where that cannot be said: another folder that is found instead might hold other files.
    """
    match kind(path):
        case stat.S_IFDIR:
            return path
        case stat.S_IFREG:
            return path.parent
    return None


def _candidates(recorded: str, run_folder: Path, search: Search) -> Iterator[Path]:
    """As it is if absolute, through the path map, below each assets root, below the run folder and its parents."""
    recorded = os.path.normpath(recorded)
    pure = PurePosixPath(recorded)
    if pure.is_absolute():
        yield Path(recorded)
    for old, new in search.path_map:
        if f"{recorded}/".startswith(old.rstrip("/") + "/"):
            yield Path(new + recorded[len(old.rstrip("/")) :])
    relative = pure.relative_to("/") if pure.is_absolute() else pure
    if ".." in relative.parts:
        return
    for root in search.assets_roots:
        yield root / relative
        yield root / relative.name
    if not pure.is_absolute():
        for folder in (run_folder, *run_folder.parents):
            yield folder / relative


def _json(path: Path, payload: bytes, flag: str) -> dict[str, Any]:
    try:
        said = parse_json(payload) if len(payload) <= CONFIG_LIMIT else None
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise errors.AssetsInvalid("an asset is no JSON object", path=path, hint=f"name the right folder with {flag}")
    return said


def _tokenizer(folder: Path, recorded: Recorded | None) -> tuple[dict[str, bytes], int, tuple[int, ...]]:
    """A tokenizer's files, and the highest and the added ids that `tokenizer.json`, or else `vocab.json`, gives out."""
    found = {name: payload for name in ASSET_NAMES if (payload := read_asset(folder / name, recorded)) is not None}
    for name in _templates(folder):
        payload = read_asset(folder / name, recorded)
        if payload is not None:
            found[name] = payload
    if not found.keys() & {"tokenizer.json", "vocab.json", "tokenizer.model"}:
        raise errors.AssetsMissing(
            "there is no tokenizer in this folder", path=folder, hint="name the right folder with --tokenizer"
        )
    highest, added = -1, tuple[int, ...]()
    vocabulary = "tokenizer.json" if "tokenizer.json" in found else "vocab.json"
    for name, payload in found.items():
        try:
            if name.endswith(".json"):
                said = parse_json(payload)
                if name == vocabulary:
                    said = said if name == "tokenizer.json" else {"model": {"vocab": said}}
                    highest, added = highest_id(said), added_ids(said)
            elif name.endswith((".txt", ".jinja")):
                payload.decode("utf-8")
            if name == "merges.txt" and any(
                len(line.split(b" ")) != 2 for line in payload.splitlines() if line and not line.startswith(b"#version")
            ):
                raise ValueError("no merges")
        except ValueError:
            raise errors.AssetsInvalid(
                "a tokenizer's file is not what its name says",
                path=folder / name,
                hint="name the right folder with --tokenizer",
            ) from None
    return found, highest, added


def _templates(folder: Path) -> list[str]:
    """Names of more chat templates. Raises OSError: none is left out because the file system failed."""
    if TEMPLATES not in os.listdir(folder):
        return []
    try:
        names = os.listdir(folder / TEMPLATES)
    except NotADirectoryError:
        return []
    return [f"{TEMPLATES}/{name}" for name in sorted(names) if name.endswith(".jinja")]


def render(assets: Assets, config: dict[str, Any], generation: dict[str, Any]) -> dict[str, bytes]:
    """Every file but weights and manifest, by name: config, generation config and tokenizer."""
    made = _dump(generation) if assets.generation is None else assets.generation
    return {"config.json": _dump(config), "generation_config.json": made} | assets.tokenizer


def write(staging: Path, rendered: dict[str, bytes]) -> None:
    """Puts these files into the staging directory."""
    if any("/" in name for name in rendered):
        (staging / TEMPLATES).mkdir()
    for name, payload in rendered.items():
        write_durably(staging / name, payload)


def _dump(said: dict[str, Any]) -> bytes:
    """As transformers writes its configs."""
    return (json.dumps(said, indent=2, sort_keys=True) + "\n").encode()


def disagreements(config: dict[str, Any], assets: Assets, special: dict[str, int | None]) -> list[str]:
    """Warnings: BOS, EOS or PAD not the same for config, generation config and tokenizer, or no row of the embedding; a class
    that 4.x cannot load."""
    found = []
    generation = parse_json(assets.generation) if assets.generation else {}
    for name in ("bos", "eos", "pad"):
        stated = {who: set(ids) for who, ids in (
            ("config", _ids(config.get(f"{name}_token_id"))),
            ("generation config", _ids(generation.get(f"{name}_token_id"))),
            ("tokenizer", _ids(special.get(name))),
        ) if ids}  # fmt: skip
        if len(stated) > 1 and not set.intersection(*stated.values()):
            what = f"{name.upper()} differs: " + ", ".join(f"{who} {sorted(ids)}" for who, ids in stated.items())
            found.append(errors.brief(what))
    rows = config.get("vocab_size", 1 << 62)
    for where, said in (("config.json", config), ("generation_config.json", generation)):
        past = {
            key: value
            for key, value in said.items()
            if key.endswith("_token_id") and any(i >= rows for i in _ids(value))
        }
        if past:
            what = ", ".join(f"{key} {value}" for key, value in sorted(past.items()))
            found.append(
                errors.brief(
                    f"{where} names tokens past the embedding's {rows:,} rows ({what}): the model never generates them"
                )
                + "; set the run's own in the base assets"
            )
    found += sampling(generation)
    tokenizer_config = parse_json(assets.tokenizer.get("tokenizer_config.json", b"{}"))
    if not isinstance(tokenizer_config, dict):
        return found
    if (kind := tokenizer_config.get("tokenizer_class")) in _NEWER_CLASSES:
        found.append(
            f"tokenizer_class {kind} exists in transformers 5 only: older readers cannot load this tokenizer; set "
            '"tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json'
        )
    if isinstance(tokenizer_config.get("extra_special_tokens"), list):
        found.append(
            "extra_special_tokens is a list, as transformers 5 writes it: 4.x readers cannot load this tokenizer; rename it "
            "to additional_special_tokens in tokenizer_config.json"
        )
    return found


def sampling(generation: dict[str, Any]) -> list[str]:
    """A warning of a generation config that changes what a caller of `generate` gets, if it does."""
    stated = {
        key: value
        for key, plain in _PLAIN.items()
        if type(value := generation.get(key)) in (bool, int, float) and value not in plain
    }
    if not stated:
        return []
    how = ", ".join(f"{key} {value}" for key, value in stated.items())
    return [
        f"generation_config.json is not greedy at temperature 1 ({how}): generate() follows it; transformers 4.50 to 4.57 "
        "also where a GenerationConfig says otherwise with a default value: pass use_model_defaults=False"
    ]


def _ids(value: Any) -> list[int]:
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int]
