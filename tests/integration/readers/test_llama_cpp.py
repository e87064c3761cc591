"""Promises that llama.cpp, a reader of another kind, reads the same model and tokenizer from an export.

Its own converter makes a GGUF file of the export, its own server answers. Skipped, with pip's reason, where pip cannot
get them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.small_tokenizer import CORPUS
from tests.integration.readers import environments
from tests.integration.readers.conftest import Figures
from tests.support.checkpoints import cache
from tests.support.checkpoints.cases import BY_NAME
from tests.unit.converter.running import Convert

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[3]
KINDS = ("dense", "moe")
DTYPES = ("float32", "bfloat16")
TOKENS, ROWS, ADDED, SEQ_LEN = 151_673, 151_936, 4, 4096
PROMPTS, LENGTH = 12, 200
LIKELIEST = 10
NEAR_TIE = 1e-5
"""Router probabilities of the last expert chosen and the first one not chosen that are closer than this may be the
other way round in another float32 implementation: 2^-24 in each of some 64 terms."""

COMPOSED = (
    "Benzene is <SMILES>c1ccccc1</SMILES>, 12345.678 in all!\r\n\n  It's  HE'LL\t<CONFORMER>\n",
    "<|im_start|>user\nкошка naïve 我想 \U0001f999 3.14159<|im_end|> <|endoftext|></CONFORMER> ",
)
DECOMPOSED = "cafe\u0301"


@dataclass(frozen=True)
class LlamaCpp:
    """Where llama.cpp's parts are."""

    source: Path
    converter: Path
    runtime: Path

    def gguf_path(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(self.source / "gguf-py")}

    def convert(self, export: Path, file: Path, outtype: str) -> subprocess.CompletedProcess[str]:
        script = self.source / "convert_hf_to_gguf.py"
        command = [self.converter, script, export, "--outtype", outtype, "--outfile", file]
        return subprocess.run(command, env=self.gguf_path(), capture_output=True, text=True)

    def read(self, file: Path, prompts: list[list[int]], *, exact: bool, texts: tuple[str, ...] = ()) -> dict[str, Any]:
        """As `read_llama_cpp` gives it."""
        answer = file.with_suffix(".json")
        job = {"model": str(file), "exact": exact, "prompts": prompts, "texts": texts, "answer": str(answer)}
        command = [self.runtime, "-I", Path(__file__).with_name("read_llama_cpp.py")]
        ended = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        said: dict[str, Any] = json.loads(answer.read_text())
        return said


@pytest.fixture(scope="session")
def llama_cpp(place: Path, figures: Figures) -> LlamaCpp:
    try:
        found = LlamaCpp(
            environments.llama_cpp_source(place),
            environments.make(environments.LLAMA_CPP_CONVERTER, place),
            environments.make(environments.LLAMA_CPP, place),
        )
    except environments.Unavailable as reason:
        pytest.skip(f"llama.cpp is not to be had here: {reason}")
    figures.setdefault("versions", {})["llama.cpp"] = [environments.LLAMA_CPP_SOURCE, *environments.LLAMA_CPP.pins]
    return found


@pytest.fixture(scope="session")
def runs(llama_cpp: LlamaCpp, place: Path) -> Path:
    """The folder of `qwen_runs`, built anew when its sources have changed."""
    folder = place / "qwen-runs"
    sources = (REPOSITORY / "tests/support/checkpoints/big.py", Path(__file__).with_name("qwen_runs.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = f"{folder}\n{cache.digest()}\n{digest}\n{environments.LLAMA_CPP_SOURCE}"
    with environments.only_one(folder):
        made = folder / "made"
        if not made.exists() or made.read_text() != stamp:
            shutil.rmtree(folder, ignore_errors=True)
            vocabulary = llama_cpp.source / "models/ggml-vocab-qwen2.gguf"
            command = [sys.executable, "-m", "tests.integration.readers.qwen_runs", folder, vocabulary]
            subprocess.run(command, cwd=REPOSITORY, env=llama_cpp.gguf_path(), check=True)
            made.write_text(stamp)
    return folder


@pytest.fixture(scope="session")
def exports(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By kind and dtype; the MoE in bfloat16 in several files with an index."""
    out = tmp_path_factory.mktemp("exports")
    convert = Convert()
    found = {}
    for kind in KINDS:
        for dtype in DTYPES:
            (out / kind / dtype).mkdir(parents=True)
            several = {"max_shard_size": 30_000_000} if (kind, dtype) == ("moe", "bfloat16") else {}
            done = convert(runs / kind / "checkpoint/step-2", output=out / kind / dtype, dtype=dtype, **several)
            found[kind, dtype] = done.published
    assert len(list(found["moe", "bfloat16"].glob("model-*.safetensors"))) > 1
    return found


@dataclass(frozen=True)
class Expected:
    """What the installed transformers computes of an export, in float32, after each prompt."""

    prompts: list[list[int]]
    scores: torch.Tensor
    """[prompts, rows]: log probability of each token as the next one."""
    largest: float
    """The largest logit, absolute."""
    layers: int
    near_ties: list[bool]
    """By prompt: whether any token of it is routed by a near-tie."""


@pytest.fixture(scope="session")
def expected(exports: dict[tuple[str, str], Path]) -> Callable[[str, str], Expected]:
    known: dict[tuple[str, str], Expected] = {}

    def of(kind: str, dtype: str) -> Expected:
        if (kind, dtype) not in known:
            known[kind, dtype] = compute(exports[kind, dtype], moe=kind == "moe")
        return known[kind, dtype]

    return of


def some_prompts(export: Path) -> list[list[int]]:
    """Fixed ones of LENGTH tokens: a text, then random ids, with every added token in each."""
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(export)(" ".join(CORPUS))["input_ids"][:LENGTH]
    draw = random.Random(9)
    prompts = [text, *([draw.randrange(TOKENS) for _ in range(LENGTH)] for _ in range(PROMPTS - 1))]
    for prompt in prompts:
        prompt[10:190:45] = range(TOKENS - ADDED, TOKENS)
    assert [len(prompt) for prompt in prompts] == [LENGTH] * PROMPTS
    return prompts


def compute(export: Path, *, moe: bool) -> Expected:
    from transformers import AutoModelForCausalLM

    prompts = some_prompts(export)
    model = AutoModelForCausalLM.from_pretrained(export, dtype="auto").float()
    near_ties = [False] * PROMPTS
    with torch.no_grad():
        output = model(torch.tensor(prompts), logits_to_keep=1, **({"output_router_logits": True} if moe else {}))
    if moe:
        routed = torch.stack([logits.view(PROMPTS, LENGTH, -1) for logits in output.router_logits])
        best = routed.softmax(-1).topk(model.config.num_experts_per_tok + 1).values
        margins = (best[..., -2] - best[..., -1]).amin(dim=(0, 2))
        near_ties = (margins < NEAR_TIE).tolist()
    logits = output.logits[:, -1]
    return Expected(
        prompts, logits.log_softmax(-1), float(logits.abs().max()), model.config.num_hidden_layers, near_ties
    )


Gguf = Callable[[Path, str], Path]


@pytest.fixture(scope="session")
def gguf(llama_cpp: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Gguf:
    """`gguf(export, outtype)`, made once."""
    out = tmp_path_factory.mktemp("gguf")
    made: dict[tuple[Path, str], Path] = {}

    def make(export: Path, outtype: str) -> Path:
        if (export, outtype) not in made:
            file = out / f"{len(made)}.gguf"
            ended = llama_cpp.convert(export, file, outtype)
            assert ended.returncode == 0, ended.stderr
            made[export, outtype] = file
        return made[export, outtype]

    return make


def apart(expected: Expected, said: dict[str, Any]) -> list[float]:
    """By prompt: the largest difference of a log probability, over both sides' likeliest tokens."""
    found = []
    for scores, theirs in zip(expected.scores, said["likeliest"], strict=True):
        worst = max(abs(scores[token].item() - score) for token, score in theirs[:LIKELIEST])
        named = dict(theirs)  # llama.cpp names 20
        for token in scores.topk(LIKELIEST).indices.tolist():
            last = theirs[-1][1]  # a token that it does not name is no likelier than its last one
            worst = max(
                worst, abs(scores[token].item() - named[token]) if token in named else scores[token].item() - last
            )
        found.append(worst)
    return found


def same_order(scores: torch.Tensor, theirs: list[tuple[int, float]], tolerance: float) -> bool:
    """Whether the likeliest tokens are the same in the same order; two whose log probabilities are closer than twice
    `tolerance` may be swapped."""
    order = [scores[token].item() for token, _ in theirs[:LIKELIEST]]
    best = scores.topk(LIKELIEST).values.tolist()
    return all(abs(ours - wanted) <= 2 * tolerance for ours, wanted in zip(order, best, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_computing_in_float32_llama_cpp_gives_the_same_likeliest_tokens(
    llama_cpp: LlamaCpp,
    exports: dict[tuple[str, str], Path],
    gguf: Gguf,
    expected: Callable[[str, str], Expected],
    figures: Figures,
    kind: str,
    dtype: str,
) -> None:
    """Weights of either dtype as float32, which holds bfloat16 exactly: what is left is float32's rounding.

    The largest part of it are the angles of rotary embeddings: the last position's is known to LENGTH * 2^-24 on each
    side, and moves the logits by no more than that part of the largest.
    """
    wanted = expected(kind, dtype)
    said = llama_cpp.read(gguf(exports[kind, dtype], "f32"), wanted.prompts, exact=True)
    tolerance = 2 * LENGTH * 2**-24 * wanted.largest
    clear = [i for i in range(PROMPTS) if not wanted.near_ties[i]]
    differences = apart(wanted, said)
    figures.setdefault("llama.cpp", {})[f"{kind} {dtype}, computed in float32"] = {
        "apart": max(differences[i] for i in clear),
        "tolerance": tolerance,
        "prompts": len(clear),
    }
    assert len(clear) >= PROMPTS // 2
    for i in clear:
        assert differences[i] <= tolerance
        assert same_order(wanted.scores[i], said["likeliest"][i], tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_as_people_run_it_llama_cpp_gives_the_same_likeliest_tokens(
    llama_cpp: LlamaCpp,
    exports: dict[tuple[str, str], Path],
    gguf: Gguf,
    expected: Callable[[str, str], Expected],
    figures: Figures,
    kind: str,
) -> None:
    """bfloat16 weights with llama.cpp's defaults. It rounds what goes into each product to bfloat16, 2^-9 of a value;
    a layer has seven products one after the other or side by side, the head is one: their errors add up as a root.

    Where that sends a token to another expert, a single prompt's result is another (a TorchTitan model run in bfloat16
    differs from itself in the same way): of a MoE's prompts the median must be within the tolerance.
    """
    wanted = expected(kind, "bfloat16")
    said = llama_cpp.read(gguf(exports[kind, "bfloat16"], "auto"), wanted.prompts, exact=False)
    tolerance = 2**-9 * wanted.largest * math.sqrt(7 * wanted.layers + 1)
    differences = apart(wanted, said)
    within = statistics.median(differences) if kind == "moe" else max(differences)
    figures.setdefault("llama.cpp", {})[f"{kind} bfloat16, as people run it"] = {
        "apart": within,
        "worst": max(differences),
        "tolerance": tolerance,
    }
    assert said["model"]["ftype"] == "BF16"
    assert within <= tolerance
    if kind == "dense":
        for scores, theirs in zip(wanted.scores, said["likeliest"], strict=True):
            assert same_order(scores, theirs, tolerance)


def test_with_another_rope_theta_llama_cpp_would_differ(
    llama_cpp: LlamaCpp,
    exports: dict[tuple[str, str], Path],
    gguf: Gguf,
    expected: Callable[[str, str], Expected],
    figures: Figures,
    tmp_path: Path,
) -> None:
    """So the comparison above does see what the reader takes from config.json."""
    changed = tmp_path / "changed"
    shutil.copytree(exports["dense", "float32"], changed)
    config = json.loads((changed / "config.json").read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 10_000
    (changed / "config.json").write_text(json.dumps(config))
    wanted = expected("dense", "float32")
    said = llama_cpp.read(gguf(changed, "f32"), wanted.prompts, exact=True)
    closest = min(apart(wanted, said))
    figures.setdefault("llama.cpp", {})["dense float32, with another rope theta"] = {"apart": closest}
    assert closest > 100 * 2 * LENGTH * 2**-24 * wanted.largest


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_tokenizes_the_same_but_does_not_compose_accents(
    llama_cpp: LlamaCpp, exports: dict[tuple[str, str], Path], gguf: Gguf, kind: str
) -> None:
    from transformers import AutoTokenizer

    export = exports[kind, "bfloat16"]
    tokenizer = AutoTokenizer.from_pretrained(export)
    said = llama_cpp.read(gguf(export, "auto"), [[0]], exact=False, texts=(*COMPOSED, DECOMPOSED))
    wanted = [tokenizer(text)["input_ids"] for text in (*COMPOSED, DECOMPOSED)]
    assert said["tokens"][:-1] == wanted[:-1]
    assert set(range(TOKENS - ADDED, TOKENS)) <= set().union(*wanted)
    assert said["tokens"][-1] != wanted[-1]
    assert wanted[-1] == tokenizer(unicodedata.normalize("NFC", DECOMPOSED))["input_ids"]
    model = said["model"]
    assert (model["n_vocab"], model["n_ctx_train"], model["n_embd"]) == (ROWS, SEQ_LEN, 64)


def test_llama_cpp_refuses_a_tokenizer_whose_pre_tokenizer_it_does_not_know(
    llama_cpp: LlamaCpp, checkpoints: Path, tmp_path: Path
) -> None:
    """It tells them by the ids of a text, so a toy vocabulary is unknown to it, and any that is not a published one."""
    done = Convert()(BY_NAME["dense_tied-0.2-fsdp-float32"].step(checkpoints), output=tmp_path)
    ended = llama_cpp.convert(done.published, tmp_path / "m.gguf", "f32")
    assert ended.returncode != 0
    assert "BPE pre-tokenizer was not recognized" in ended.stderr
