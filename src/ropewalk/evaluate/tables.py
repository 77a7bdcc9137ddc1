"""The tables of the stage evaluate, measured by as many processes as there are devices."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ropewalk.config import Config
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.cache import model_cache
from ropewalk.evaluate.compare import perplexity_tables
from ropewalk.evaluate.extension import Extension, with_gradient
from ropewalk.evaluate.far_context import far_context_rows, with_key_tokens
from ropewalk.evaluate.models import LoadedModels, model_paths
from ropewalk.evaluate.prompt_sets import PromptSets, needle_draws, passkey_draws
from ropewalk.evaluate.retrieval import retrieval_rows
from ropewalk.memory_advice import stage_advice
from ropewalk.models.base import BaseModel, load_tokenizer
from ropewalk.models.memory import within_memory
from ropewalk.workers import device_of, run_workers

Tables = dict[str, list[dict[str, Any]]]
"""Rows by the table's name."""


@dataclass(frozen=True)
class Evaluation:
    """What the stage evaluate reads and measures.

    Args:
        inputs: folder with the results of earlier stages.
        state: folder for the locks of the processes, and for their figures where ``evaluate.cache`` keeps none.
        worker: number of this process among those that evaluate.
    """

    config: Config
    inputs: Path
    state: Path
    worker: int = 0

    @cached_property
    def base(self) -> BaseModel:
        return BaseModel.read(self.inputs / "base.json")

    @cached_property
    def paths(self) -> dict[str, str]:
        """Paths of the models by name."""
        return model_paths(self.base, self.inputs / "checkpoints")

    @cached_property
    def extension(self) -> Extension:
        return Extension.read(self.inputs, self.base, self.config.evaluate, methods=tuple(self.config.rope.methods))

    @property
    def workers(self) -> int:
        """Number of processes: one for each of the devices that ``parallel`` asks for and this machine has."""
        return min(self.config.parallel.devices, torch.cuda.device_count() or self.config.parallel.devices)

    def tables(self) -> Tables:
        """All tables; every process measures some of their figures, and finds those of the others in the cache."""
        return run_workers(self.workers, self._tables, partial(_join, replace(self)))

    def _tables(self) -> Tables:
        with within_memory(stage_advice("evaluate", self.config)):
            return self._measured()

    def _measured(self) -> Tables:
        config, settings, seed = self.config, self.config.evaluate, self.config.seed
        loading = {**config.model.loading, "device": str(device_of(self.worker))}
        models, several = LoadedModels(self.paths, **loading), self.workers > 1
        cache = model_cache(
            settings.cache or (self.state / "measured" if several else None),
            self.paths,
            dtype=config.model.dtype,
            **config.model.trust,
            turns=self.state / "turns" if several else None,
            worker=self.worker,
        )
        extension, target = self.extension, self.extension.first.target_length
        tokenizer = load_tokenizer(self.base.path, **config.model.trust)
        store = TokenStore(self.inputs / "tokens" / "test")
        sets = with_key_tokens(extension.document_sets(store), extension, models, cache=cache)
        tasks = list(with_gradient(extension, sets, self.inputs / "factors" / "first_gradient.json", models))
        prompts = PromptSets.open(self.inputs / "prompts", tokenizer, store)
        passkeys, needles = passkey_draws(settings, target=target, seed=seed), needle_draws(settings, seed=seed)
        return {
            **perplexity_tables(models, tasks, stride=settings.stride, cache=cache, chunk=settings.chunk_tokens),
            "far_context": far_context_rows(sets, extension, models, cache=cache),
            "passkey": extension.recall(passkeys, models, prompts, desc="passkeys", cache=cache),
            "needles": extension.recall(needles, models, prompts, desc="needles", cache=cache),
            "benchmarks": extension.benchmarks(models, tokenizer, cache=cache),
            "factors": extension.factor_rows(),
            "retrieval": [] if self.worker else retrieval_rows(extension, models, prompts, seed=seed),
        }


def _join(evaluation: Evaluation, worker: int) -> None:
    replace(evaluation, worker=worker)._tables()
