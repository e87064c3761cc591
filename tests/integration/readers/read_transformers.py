"""Owns what one transformers version reads: run by path in that version's own environment, it imports nothing of ours.

Takes a JSON list of jobs on stdin, {"path", "tokens", "texts", "logits"}; prints a JSON list of what was read of each
(see `read`) on stdout, and writes each job's logits to the file `logits` (npy, float32, [batch, length, rows]).
What a reader cannot do is no failure here: the key holds {"error": "Type: message"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

started = time.monotonic()
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}

import numpy  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: E402

imported = time.monotonic()
DTYPE = "torch_dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 56) else "dtype"
"""The argument's name; `dtype` since 4.56."""


def attempt(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def theta_of(model: torch.nn.Module, head_dim: int) -> float:
    """The base that the rotary embedding really uses: its slowest frequency is theta ** -((head_dim - 2) / head_dim)."""
    (frequencies,) = {tuple(b.tolist()) for name, b in model.named_buffers() if name.endswith("rotary_emb.inv_freq")}
    slowest: float = frequencies[-1] ** (-head_dim / (head_dim - 2))
    return slowest


def read_model(job: dict[str, Any]) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(job["path"], **{DTYPE: "auto"}).eval()
    said = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "dtypes": sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}),
        "config_dtype": str(getattr(model.config, DTYPE)).removeprefix("torch."),
        "theta": theta_of(model, model.config.head_dim),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "positions": model.config.max_position_embeddings,
        "eos": model.generation_config.eos_token_id,
    }
    with torch.no_grad():
        logits = model.float()(torch.tensor(job["tokens"])).logits
    numpy.save(job["logits"], logits.numpy())
    return said


def read_config(job: dict[str, Any]) -> dict[str, Any]:
    """What a program sees that looks into the config only, as inference servers do before they build their own model."""
    config = AutoConfig.from_pretrained(job["path"])
    return {
        "dtype": str(getattr(config, DTYPE)).removeprefix("torch."),
        "experts": getattr(config, "num_experts", None),
    }


def read_tokens(tokenizer: Any, job: dict[str, Any]) -> dict[str, Any]:
    ids = [tokenizer(text)["input_ids"] for text in job["texts"]]
    chat = [{"role": "user", "content": job["texts"][0]}]
    return {
        "class": type(tokenizer).__name__,
        "length": len(tokenizer),
        "ids": ids,
        "texts": [tokenizer.decode(sequence, clean_up_tokenization_spaces=False) for sequence in ids],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "chat": attempt(lambda: tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)),
    }


def way_round(path: str) -> Any:
    """How 4.x can load a tokenizer that transformers 5 saved: no class named, the list of special tokens put aside
    (which of them are special stands in tokenizer.json as well)."""
    return PreTrainedTokenizerFast.from_pretrained(path, extra_special_tokens={})


def read(job: dict[str, Any]) -> dict[str, Any]:
    path = job["path"]
    return {
        "config": attempt(lambda: read_config(job)),
        "model": attempt(lambda: read_model(job)),
        "tokenizer": attempt(lambda: read_tokens(AutoTokenizer.from_pretrained(path), job)),
        "way_round": attempt(lambda: read_tokens(way_round(path), job)),
    }


def main() -> None:
    transformers.logging.disable_progress_bar()
    said = [read(job) for job in json.load(sys.stdin)]
    times = {"import_s": round(imported - started, 1), "read_s": round(time.monotonic() - imported, 1)}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, **times}
    json.dump({"versions": versions, "read": said}, sys.stdout)


if __name__ == "__main__":
    main()
