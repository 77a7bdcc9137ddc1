"""The progressive schedule: steps of growing length, each from the last one's weights under the scaling it names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropewalk.config import FinetuneConfig, FinetuneStepConfig, ParallelConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.finetune.train import finetune
from ropewalk.rope import RopeScaling, RotaryShape, current_scaling, methods


def searched_scalings(text: str) -> dict[int, RopeScaling]:
    """What search_first's results/factors/first.json holds, by target length; the first target's is the last."""
    last = RopeScaling.from_json(text)
    shorter = [RopeScaling.from_json(json.dumps(entry)) for entry in json.loads(text).get("shorter", [])]
    return {scaling.target_length: scaling for scaling in (*shorter, last)}


def scaling_of(
    step: FinetuneStepConfig, searched: Mapping[int, RopeScaling], shape: RotaryShape, *, key: str
) -> RopeScaling:
    """The scaling that a step of the schedule names.

    Raises:
        FileNotFoundError: it is a file, and not there.
        ValueError: nothing was searched for its length.
    """
    length = step.scaling_length or max(searched)
    if step.scaling == "searched":
        if length not in searched:
            raise ValueError(f"{key}.scaling_length must be among the searched {sorted(searched)}, found {length}")
        return searched[length]
    if step.scaling.endswith((".json", ".csv")):
        return RopeScaling.from_file(
            step.scaling,
            rotary_dim=shape.rotary_dim,
            original_length=shape.original_length,
            target_length=length,
            key=f"{key}.scaling",
        )
    return methods.METHODS[step.scaling](
        rotary_dim=shape.rotary_dim, base=shape.base, original_length=shape.original_length, target_length=length
    )


def train_schedule(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: TokenStore,
    config: FinetuneConfig,
    *,
    stage: str,
    searched: Mapping[int, RopeScaling],
    shape: RotaryShape,
    seed: int,
    state_folder: Path,
    logger: Logger | None = None,
    start: RopeScaling | None = None,
    parallel: ParallelConfig | None = None,
) -> tuple[list[dict[str, float]], RopeScaling]:
    """Train ``model`` through the steps of the stage ``first`` or ``second``; a row per optimizer step and the scaling.

    A step that is done is not done again after a kill, since its state is kept until the stage is done.

    Args:
        searched: scalings by target length (`searched_scalings`).
        parallel: the devices; this one alone by default.
        start: what the model was trained under before; learned factors go on from it where it is for the same length.

    Raises:
        ValueError, MemoryError, KeyboardInterrupt: as `ropewalk.finetune.train.finetune`.
    """
    rows: list[dict[str, float]] = []
    samples = 0
    steps = config.steps_of(stage)
    for number, (key, step) in enumerate(steps.items()):
        scaling = scaling_of(step, searched, shape, key=key)
        if config.learn_factors and start is not None and start.target_length == scaling.target_length:
            scaling = start
        main = key == f"finetune.{stage}"
        if step.steps:
            rows += finetune(
                model,
                tokenizer,
                store,
                step,
                config,
                scaling=scaling,
                # The steps before the main one read other rows than it, also at its length.
                seed=seed if main else seed + 1000 * (number + 1),
                state_folder=state_folder if main else state_folder / f"before_{number}",
                label=f"fine-tuning at {step.length:,}",
                logger=logger,
                parallel=parallel,
                first_step=len(rows),
                first_sample=samples,
            )
            samples += step.steps * step.rows
            start = current_scaling(model)
        else:
            start = start or scaling
    assert start is not None
    return rows, start


def shape_of(base: dict[str, Any]) -> RotaryShape:
    """Of the model that the stage base describes."""
    return RotaryShape(base["rotary_dim"], base["base"], base["original_length"])
