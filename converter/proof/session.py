"""Owns the proof of one conversion: the real adapter's plan, and both models' forward passes over the same weights.

Lives in the proving process (`process`), which imports torch, torchtitan and transformers when it is first asked, while
its parent moves bytes without them.
"""

import gc
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from converter.checkpoint import tensors
from converter.common import errors
from converter.common.dtypes import FLOATS
from converter.common.files import CONFIG_LIMIT, parse_json, read_regular
from converter.common.io_pacing import Traffic
from converter.families import registry, renamed_tensors
from converter.families.family import differences
from converter.proof.import_stubs import LeftOut, leave_out
from converter.proof.malloc import give_back
from converter.publish.manifest import ASSET_NAMES
from converter.run.path_permission import LIMIT
from converter.run.run_config import RunConfig

_MADE = "config.json: made from what the run recorded, there is none among the base assets"
_IMPORTED = (
    None,
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    *(name for family in registry.FAMILIES for name in family.tokenizer_classes),
)
"""Tokenizer classes that need nothing of what is left out; of any other, a part might be, and another class take its place."""


class ProofSession:
    """One step's conversion, seen from the side of torch: `start`, then `tokenizer` and `compare`."""

    def __init__(self, answers: IO[str], *, whole: bool = False):
        self._answers, self.whole = answers, whole
        self.silent = False
        """No progress is told: it was before."""
        self._telling = threading.Lock()
        self._done = 0
        """Layers, of both passes."""

    def warm_up(self) -> dict[str, Any]:
        """Imports what the rest needs: asked for at once, while the parent still reads metadata.

        Raises LeftOut where it needs something that was not imported; so may every other request.
        """
        gc.disable()  # 16,000 objects' worth of modules: collecting while they load costs a sixth of the time
        if not self.whole:
            leave_out()
        import torch

        torch.set_num_threads(1)

        gc.freeze()
        gc.enable()
        return {"tools": tools()}

    def start(
        self,
        step: str,
        metadata: dict[str, Any],
        run: dict[str, Any],
        base: dict[str, Any],
        has_config: bool,
        base_path: str,
        dtype: str,
        architecture: str,
        untie: bool,
        io_bandwidth_limit: float,
        drop_behind: bool,
    ) -> dict[str, Any]:
        """Settles the architecture and makes the plan; answers plan, config.json, generation config.

        Without the base assets' config (`has_config`), it is made from what the run recorded. `untie`: embedding and head differ, and are exported as two where the run calls them tied.
        """
        import torch

        from converter.proof import adapter_plan, compare_logits
        from converter.run import tokenizer_fit

        self.step = Path(step)
        self.traffic = Traffic(io_bandwidth_limit, drop_behind=drop_behind)
        self.run = RunConfig.from_json(run)
        self.dtype = dtype
        held = tensors.from_json(metadata)
        spec = registry.family_of(held, self.run, self.step)
        self.family = family = registry.model_of(spec)
        if held.form == "hf":
            shapes, made_of = family.shapes_of_hf({name: items.shape for name, items in held.tensors.items()})
        else:
            names = renamed_tensors.source_names(spec, held, self.step)
            made_of = {name: [fqn] for name, fqn in names.items()}
            shapes = {name: held.tensors[fqns[0]].shape for name, fqns in made_of.items()}
        self.tensors = {name: [held.tensors[fqn] for fqn in fqns] for name, fqns in made_of.items()}
        where = Path(base_path)
        ours: dict[str, Any] = {}
        if has_config:
            ours = family.architecture_of_base(family.hf_config(base, shapes, where=where))
        else:
            family.check_told(self.run, shapes, where)
        self.config, borrowed = family.recorded_config(self.step, self.run, shapes, ours)
        untied = untie and self.config.enable_weight_tying
        if untied:
            self.config.enable_weight_tying = base["tie_word_embeddings"] = ours["tie_word_embeddings"] = False
        self.wanted = wanted = family.architecture_of(self.config)
        if has_config:
            differs = check_architecture(ours, wanted, architecture, where)
            said = family.with_architecture(base, wanted) if differs else dict(base)
        else:
            differs = [_MADE]
            borrowed.append(_MADE)
            said = family.made_config(base, wanted)
        rows = shapes[spec.embedding][0]
        tokenizer_fit.check_padding(said.get("pad_token_id"), rows, where)
        self.besides = {"vocab_size": rows, "max_position_embeddings": self.run.seq_len}
        said |= self.besides | {"dtype": dtype}
        said.pop("torch_dtype", None)
        self.hf_config = family.hf_config(said, shapes, where=where)
        model = self._hf_model(where)
        made = adapter_plan.make_plan(self.step, spec, made_of, shapes, family.adapter(self.config), model)
        self.plan = made if held.form == "dcp" else adapter_plan.of_hf_step(self.step, made, held.tensors.keys())
        self.hf_config.architectures = [type(model).__name__]
        self.hf_config.dtype = getattr(torch, dtype)
        text = json.loads(self.hf_config.to_json_string(use_diff=True))
        return {
            "plan": self.plan.to_json(),
            "config": text | family.older_keys(text, self.hf_config),
            "generation_config": json.loads(model.generation_config.to_json_string()),
            "borrowed": list(map(errors.brief, borrowed)),
            "reshaped": list(map(errors.brief, differs)),
            "untied": untied,
            "rows": rows,
            "tolerance": compare_logits.TOLERANCE,
        }

    def _hf_model(self, where: Path) -> Any:
        """HF's model on meta; whatever keys of the base assets' config keep it from being made are theirs."""
        try:
            return self.family.hf_model(self.hf_config)
        except Exception as error:
            kind = type(error).__name__
            if not self.whole:
                raise LeftOut(f"HF's model ({kind})") from None
            raise errors.AssetsInvalid(
                f"HF's model cannot be made of the base assets' config ({kind})",
                path=where,
                hint="compare its config.json with the one that the model was published with",
            ) from None

    def config_written(self, directory: str) -> dict[str, Any]:
        """Reads config.json in `directory` as transformers 5 and as those before read it."""
        where = Path(directory) / "config.json"
        written = parse_json(read_regular(where, limit=CONFIG_LIMIT))
        self.family.check_written(written, self.wanted, self.besides, self.dtype, where=where)
        return {}

    def tokenizer(self, directory: str, where: str) -> dict[str, Any]:
        """Loads the tokenizer in `directory`, copied from `where`, as TorchTitan and as transformers do, and compares them;
        answers length, added tokens and highest id of TorchTitan's, special ids and further tokens of transformers'."""
        try:
            if not self.whole and _token_class(Path(directory)) not in _IMPORTED:
                raise LeftOut("the tokenizer's class")
            said = _read_tokenizer(Path(directory), Path(where))
            if said["mismatch"] and not self.whole:
                raise LeftOut("a tokenizer that differs")
        except BaseException as error:  # a tokenizer's files can make it raise anything; nothing of them is quoted
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # tokenizers' Rust
                raise
            if not self.whole:
                raise LeftOut(f"the tokenizer ({type(error).__name__})") from None
            if isinstance(error, OSError) and error.errno:
                raise
            raise errors.AssetsInvalid(
                f"the tokenizer does not load ({type(error).__name__})",
                path=where,
                hint="name the right folder with --tokenizer",
            ) from None
        give_back()  # a third of all that this process holds, and nothing later needs it
        return said

    def train(self, token_ids: list[int]) -> dict[str, Any]:
        """Begins TorchTitan's forward pass over the checkpoint, beside the export and HF's pass."""
        self.token_ids = token_ids
        pool = ThreadPoolExecutor(1, "TorchTitan's pass")
        self._passing = pool.submit(self._pass)
        pool.shutdown(wait=False)  # its thread ends with the pass
        return {}

    def trained(self) -> dict[str, Any]:
        """What TorchTitan's pass took and found, once it is over."""
        return self._passing.result()

    def _pass(self) -> dict[str, Any]:
        from converter.checkpoint.tensor_reader import Shards
        from converter.proof import forward_pass

        begun = time.monotonic()
        held = {name: items for name, items in self.tensors.items() if items[0].dtype in FLOATS}
        with Shards(self.step, self.traffic) as source:
            passed = forward_pass.titan_forward(
                self.family, self.config, held, source, self.token_ids, self.dtype, self._progress
            )
            self.expected = passed
            seconds = round(time.monotonic() - begun, 3)
            return {"bytes_read": source.bytes_read, "drift": passed.drift, "seconds": seconds}

    def compare(self, staging: str) -> dict[str, Any]:
        """HF's forward pass over the HF shards in `staging`, with config and index as they stand there; and the verdict."""
        from converter.proof import compare_logits, forward_pass

        where = Path(staging)
        written = parse_json(read_regular(where / "config.json", limit=CONFIG_LIMIT))
        hf_config = self.family.hf_config(written, self.tensors, where=where / "config.json")
        got = forward_pass.hf_forward(self.family, hf_config, where, self.token_ids, self._progress, self.traffic)
        trained = self.trained()
        found = compare_logits.judge(self.expected, got, where)
        return trained | {"figures": vars(found), "tolerance": compare_logits.TOLERANCE}

    def _progress(self, done: int, total: int) -> None:
        """One of `total` layers is done, in one of the two passes."""
        if self.silent:
            return
        with self._telling:
            self._done += 1
            self._answers.write(json.dumps({"progress": [self._done, 2 * total]}) + "\n")


def check_architecture(base: dict[str, Any], run: dict[str, Any], architecture: str, where: Path) -> list[str]:
    """Where base assets and run are not the same model, if that is allowed ("run"). Raises ArchitectureMismatch."""
    differs = differences(base, run)
    if differs and architecture != "run":
        raise errors.ArchitectureMismatch(
            f"base assets and run are not the same model ({'; '.join(differs)})",
            path=where,
            hint="the run was trained with YaRN: take its values with --architecture run"
            if run.get("rope_type") == "yarn" and base.get("rope_type") != "yarn"
            else "name the right --hf-assets, or take the run's values with --architecture run",
        )
    return differs


def _read_tokenizer(directory: Path, where: Path) -> dict[str, Any]:
    """What TorchTitan's and transformers' tokenizer say of themselves, one after the other. Libraries hide what the file
    system said: raises OSError if it says so again. `mismatch` is what speaks against them, to be told after what the
    vocabulary's size does."""
    from transformers import AutoTokenizer

    from converter.proof import token_ids
    from converter.run import tokenizer_fit

    def load() -> dict[str, Any]:
        trained = None
        if tokenizer_fit.TRAINED_WITH & {*os.listdir(directory)}:
            trained = token_ids.as_trained(directory)
            give_back()
        loaded = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        said: dict[str, Any] = {
            "special": {name: getattr(loaded, f"{name}_token_id") for name in ("bos", "eos", "pad")},
            "warnings": [*map(errors.brief, token_ids.warnings(trained, loaded, directory))],
            "invented": [],
            "mismatch": None,
        }
        if trained is None:
            return said | {
                "length": len(loaded),
                "added": sorted(loaded.get_added_vocab().values()),
                "highest": max(loaded.get_vocab().values(), default=-1),
            }
        try:
            token_ids.check_ids(trained, loaded, directory, where)
            token_ids.check_special(trained, loaded, where)
        except errors.TokenizerMismatch as mismatch:
            said["mismatch"] = {"what": mismatch.what, "hint": mismatch.hint}
        said["invented"] = token_ids.invented(trained, loaded)
        return said | {"length": trained.length, "added": trained.added, "highest": trained.highest}

    try:
        return load()
    except Exception:
        for name in sorted({*os.listdir(directory)} & {*ASSET_NAMES}):
            read_regular(directory / name, limit=LIMIT)
        return load()


def _token_class(directory: Path) -> object:
    """`tokenizer_class`, as tokenizer_config.json says it; None where nothing does."""
    try:
        said = parse_json(read_regular(directory / "tokenizer_config.json", limit=LIMIT))
    except (FileNotFoundError, ValueError):
        return None
    return said.get("tokenizer_class") if isinstance(said, dict) else None


def tools() -> dict[str, str]:
    """Versions of what an export depends on."""
    from importlib.metadata import version

    return {
        name: version(name)
        for name in ("dcp2hf", "torch", "torchtitan", "transformers", "safetensors", "tokenizers", "numpy")
    }
