"""Owns what is asked of the proving process while bytes move: the tokenizer, then both forward passes, in this order.

Standard library only. TorchTitan's pass reads only the checkpoint, so it runs beside the export; HF's begins once the
files are written, beside the rest of TorchTitan's.
"""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from converter.checkpoint import tensors
from converter.common import errors
from converter.common.phase_timer import Clock
from converter.proof.client import Prover
from converter.run import base_assets, tokenizer_fit
from converter.run.options import Options
from converter.run.step_source import StepSource, model_bytes

TOKENS = 16
"""Of the forward check; each costs both models a thirtieth of a second at 0.6B (docs/performance.md)."""


class Asking:
    """One thread that asks; a context manager that does not wait for answers after a failure."""

    def __init__(
        self, prover: Prover, step: Path, staging: Path, source: StepSource, found: base_assets.Assets, options: Options,
        phase: Clock, *, untie: bool = False,
    ):  # fmt: skip
        self._prover, self._step, self._staging, self._source, self._found = prover, step, staging, source, found
        self._options, self._phase, self._untie = options, phase, untie
        self._pool = ThreadPoolExecutor(1, "asking")
        self._writing = threading.Lock()
        self._over = False
        self.written: dict[str, bytes] = {}
        """Config, generation config and tokenizer files as they were written, by name."""

    def __enter__(self) -> "Asking":
        self._settled = self._pool.submit(self._settle)
        self._tokenizer = self._pool.submit(self._load_tokenizer)
        self._training = self._pool.submit(self._train) if self._options.forward_check == "full" else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing:  # whoever removes the staging directory next must be alone in it
            self._over = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _settle(self) -> dict[str, Any]:
        traffic = self._options.traffic(model_bytes(self._source.metadata))
        with self._phase("plan"):
            settled = self._prover.ask(
                "start", step=str(self._step), metadata=tensors.to_json(self._source.metadata),
                run=self._source.run.to_json(), base=self._found.base, has_config=self._found.has_config,
                base_path=str(self._found.base_path),
                dtype=self._source.dtype, architecture=self._options.architecture, untie=self._untie,
                io_bandwidth_limit=traffic.limit, drop_behind=traffic.drop_behind,
            )  # fmt: skip
        with self._writing:
            if self._over:
                raise CancelledError
            self.written = base_assets.render(self._found, settled["config"], settled["generation_config"])
            base_assets.write(self._staging, self.written)
        return settled

    def _load_tokenizer(self) -> dict[str, Any]:
        settled = self._settled.result()
        tokenizer_fit.check_there(tuple(self._found.tokenizer), self._found.highest_id, self._found.tokenizer_path)
        self._prover.ask("config_written", directory=str(self._staging))
        with self._phase("tokenizer"):
            where = self._found.tokenizer_path
            said = self._prover.ask("tokenizer", directory=str(self._staging), where=str(where))
        tokenizer_fit.check_vocabulary(
            self._source.run, settled["rows"], said["length"], max(said["highest"], self._found.highest_id), where
        )
        if mismatch := said["mismatch"]:
            raise errors.TokenizerMismatch(mismatch["what"], path=where, hint=mismatch["hint"])
        said["warnings"] += tokenizer_fit.invented_tokens(said["invented"], settled["rows"])
        return said

    def _train(self) -> dict[str, Any]:
        tokenizer = self._tokenizer.result()
        ids = tokenizer_fit.check_tokens(tokenizer["length"], tokenizer["added"], TOKENS)
        return self._prover.ask("train", token_ids=ids)

    def check(self) -> None:
        """Raises what has failed so far, so that an export that is in vain ends."""
        for asked in (self._settled, self._tokenizer):
            if asked.done():
                asked.result()

    def settled(self) -> dict[str, Any]:
        """Plan and configs. Raises what speaks against them."""
        return self._settled.result()

    def tokenizer(self) -> dict[str, Any]:
        """What the tokenizer says of itself. Raises AssetsInvalid, VocabularyMismatch, TokenizerMismatch."""
        return self._tokenizer.result()

    def trained(self) -> dict[str, Any]:
        """What TorchTitan's pass found; empty if the forward check is switched off."""
        if self._training is None:
            return {}
        self._training.result()
        return self._pool.submit(self._prover.ask, "trained").result()

    def compare(self) -> Callable[[], dict[str, Any]]:
        """Begins HF's pass over the files written; the result waits for the verdict (empty if switched off).

        The result raises ForwardMismatch.
        """
        training = self._training
        if training is None:
            return dict

        def ask() -> dict[str, Any]:
            training.result()
            with self._phase("forward_hf"):
                compared = self._prover.ask("compare", staging=str(self._staging))
            self._phase.phases["forward_titan"] = compared["seconds"]
            return compared

        return self._pool.submit(ask).result
