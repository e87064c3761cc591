"""Owns what llama.cpp's runtime makes of a GGUF file: run by path in that runtime's own environment.

Takes a JSON job on stdin, {"model", "exact", "prompts", "texts", "answer"}, and writes to the file `answer`: for each
prompt (token ids) the likeliest next tokens with their log probabilities, for each text its token ids, and what the
server says of the model. The server is llama.cpp's own, asked over HTTP on this machine.

`exact`: keys and values are cached in float32 and flash attention is off; otherwise llama.cpp's defaults, as most
people run it (keys and values in float16).
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp

LIKELIEST = 20


class Server:
    def __init__(self, model: str, *, exact: bool, context: int) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_ctx = context
        params.n_parallel = 1
        params.cpuparams.n_threads = 2
        params.warmup = False
        params.verbosity = 1
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(params)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def likeliest(self, prompt: list[int]) -> list[tuple[int, float]]:
        body = {"prompt": prompt, "n_predict": 1, "n_probs": LIKELIEST, "temperature": -1, "cache_prompt": False}
        said = self.ask("/completion", body)
        assert said["tokens_evaluated"] == len(prompt)
        return [(token["id"], token["logprob"]) for token in said["completion_probabilities"][0]["top_logprobs"]]

    def tokens(self, text: str) -> list[int]:
        ids: list[int] = self.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        return ids


def main() -> None:
    job = json.load(sys.stdin)
    longest = max(map(len, job["prompts"]))
    server = Server(job["model"], exact=job["exact"], context=longest + 56)
    said = {
        "likeliest": [server.likeliest(prompt) for prompt in job["prompts"]],
        "tokens": [server.tokens(text) for text in job["texts"]],
        "model": server.ask("/v1/models")["data"][0]["meta"],
    }
    Path(job["answer"]).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
