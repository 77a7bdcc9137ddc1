"""The progressive schedule: steps of growing length, each from the previous one's weights under its own scaling.

Our model, the control and the trained baselines differ only in the steps that `train_model` is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropewalk.config import Config, FinetuneConfig, FinetuneStepConfig, ParallelConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.finetune.train import finetune, save_checkpoint
from ropewalk.models.base import BaseModel, check_same_model, load_model, load_tokenizer
from ropewalk.models.checks import check_folding
from ropewalk.models.factors import SearchedFactors
from ropewalk.rope import RopeScaling, RotaryShape, current_scaling, methods
from ropewalk.rope.query_scales import fold

Rows = dict[str, list[dict[str, float]]]
"""A row of `ropewalk.finetune.history.History` for each optimizer step, by the part of the schedule it belongs to."""


@dataclass(frozen=True)
class TrainingStep:
    """A step of a schedule, with what its configuration leaves open."""

    config: FinetuneStepConfig
    scaling: RopeScaling | None
    """What the model is trained under; None for plain RoPE."""
    seed: int
    part: str
    """first, second or control."""
    name: str
    """Folder of its state below the stage's."""


def scaling_of(
    step: FinetuneStepConfig, key: str, *, searched: Mapping[int, RopeScaling], shape: RotaryShape
) -> RopeScaling:
    """The scaling that the step of the schedule with the configuration key ``key`` names.

    Args:
        searched: scalings by target length (`ropewalk.models.factors.SearchedFactors.by_length`).

    Raises:
        FileNotFoundError: the scaling is a file that does not exist.
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
    return methods.METHODS[step.scaling](**vars(shape), target_length=length)


def schedule_steps(
    config: Config, part: str, scaling: Callable[[FinetuneStepConfig, str], RopeScaling]
) -> list[TrainingStep]:
    """The steps of the part ``first`` or ``second``, each under ``scaling`` of its configuration and its key."""
    part_seed, steps = config.seed + (part == "second"), []
    for number, (key, step) in enumerate(config.finetune.steps_of(part).items()):
        main = key == f"finetune.{part}"
        # Steps before the main one read other rows, even at the same length.
        seed = part_seed if main else part_seed + 1000 * (number + 1)
        name = part if main else f"before_{part}_{number}"
        steps.append(TrainingStep(step, scaling(step, key), seed, part, name))
    return steps


def searched_steps(config: Config, part: str, factors: Path, shape: RotaryShape) -> list[TrainingStep]:
    """The steps of the part ``first`` or ``second`` under what they name, such as the ``factors`` of search_first.

    Raises:
        ValueError: as `scaling_of`, or the steps of both parts name scalings with different query scales.
    """
    scaling_of_step = partial(scaling_of, searched=SearchedFactors.read(factors).by_length, shape=shape)
    steps = {name: schedule_steps(config, name, scaling_of_step) for name in ("first", "second")}
    scalings = [step.scaling for step in (*steps["first"], *steps["second"]) if step.scaling is not None]
    if len({scaling.query_scales for scaling in scalings}) > 1:
        raise ValueError(
            "finetune: its steps name scalings with different query scales, but one set is folded into the weights "
            "before the first step; give all steps the same scaling and scaling_length"
        )
    return steps[part]


def control_step(config: FinetuneConfig, *, window: int) -> FinetuneStepConfig:
    """A step on rows of the original window, with as many tokens as the schedule reads and the last step's rate."""
    tokens = sum(step.batch_size * step.length * step.steps for step in config.schedule.values())
    batch_size = max(1, config.second.batch_size * config.second.length // window)
    steps = max(1, round(tokens / (batch_size * window)))
    return replace(config.second, length=window, steps=steps, batch_size=batch_size)


def train_steps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: TokenStore,
    config: FinetuneConfig,
    steps: Sequence[TrainingStep],
    *,
    state_folder: Path,
    label: str = "fine-tuning",
    logger: Logger | None = None,
    start: RopeScaling | None = None,
    parallel: ParallelConfig | None = None,
) -> tuple[Rows, RopeScaling | None]:
    """Train ``model`` in place through ``steps``, and return their rows and the scaling that it ends with.

    A finished step is not repeated after a kill, since its state is kept until the stage is done.

    Args:
        start: scaling that the model was trained under before; learned factors continue from it if the target length is
            the same.
        parallel: the devices; a single one by default.

    Raises:
        ValueError, MemoryError, KeyboardInterrupt: as `ropewalk.finetune.train.finetune`.
    """
    rows: Rows = {step.part: [] for step in steps}
    for step in steps:
        scaling, part_rows = step.scaling, rows[step.part]
        if config.learn_factors and start and scaling and start.target_length == scaling.target_length:
            scaling = start
        if not step.config.steps:
            start = start or scaling
            continue
        part_rows += finetune(
            model,
            tokenizer,
            store,
            step.config,
            config,
            scaling=scaling,
            seed=step.seed,
            state_folder=state_folder / step.name,
            label=f"{label} at {step.config.length:,}",
            logger=logger,
            parallel=parallel,
            earlier=tuple(part_rows),
        )
        start = current_scaling(model)
    return rows, start


def train_model(
    path: str,
    steps: Sequence[TrainingStep],
    config: Config,
    base: BaseModel,
    *,
    state_folder: Path,
    checkpoint: Path | None,
    label: str = "fine-tuning",
    logger: Logger | None = None,
    start: RopeScaling | None = None,
) -> Rows:
    """Load the model at ``path``, train it through ``steps`` on the training split, save it, and return the rows.

    Query scales of the steps' scaling are folded into the weights of the base model first; a checkpoint of fine-tuning
    holds them already. So the model is trained and saved under the scaling without them.

    Args:
        base: the model to extend, as the stage base describes it; its tokenizer is saved with the trained model.
        checkpoint: folder of the trained model; None in a process that does not write.
        start: as in `train_steps`.

    Raises:
        FileNotFoundError, ValueError: ``path`` cannot be loaded, or is of another architecture than ``base``.
        ValueError, MemoryError, KeyboardInterrupt: as `ropewalk.finetune.train.finetune`.
    """
    dtype = config.finetune.weights_dtype(config.model.dtype)
    # Where several processes train together, Lightning moves or shards the weights to the device of each.
    device = "cpu" if config.parallel.devices * config.parallel.nodes > 1 else None
    model = load_model(path, **{**config.model.loading, "dtype": dtype}, device=device)
    check_same_model(model, base, path=path)
    tokenizer = load_tokenizer(base.path, **config.model.trust)
    first_scaling = next((step.scaling for step in steps if step.scaling), None)
    if first_scaling and path == base.path:
        check_folding(model, first_scaling, path=path)
        fold(model, first_scaling)
    steps = [replace(step, scaling=step.scaling and replace(step.scaling, query_scales=None)) for step in steps]
    rows, scaling = train_steps(
        model,
        tokenizer,
        TokenStore(Path(config.inputs) / "tokens" / "train"),
        config.finetune,
        steps,
        state_folder=state_folder,
        label=label,
        logger=logger,
        start=start,
        parallel=config.parallel,
    )
    if checkpoint is not None:
        save_checkpoint(model, tokenizer, scaling, checkpoint)
    return rows


def train_baseline(
    method: str, config: Config, base: BaseModel, *, state_folder: Path, checkpoint: Path | None
) -> Rows:
    """Train the base model under a published ``method`` for the steps of both parts, its factors not learned."""
    scaling = methods.METHODS[method](**vars(base.shape), target_length=config.extension.target)
    return train_model(
        base.path,
        [step for part in ("first", "second") for step in schedule_steps(config, part, lambda *_: scaling)],
        replace(config, finetune=replace(config.finetune, learn_factors=False)),
        base,
        state_folder=state_folder,
        checkpoint=checkpoint,
        label=f"fine-tuning with {method}",
    )


def train_control(config: Config, base: BaseModel, *, state_folder: Path, checkpoint: Path | None) -> Rows:
    """Train the base model on `control_step`, under plain RoPE or the scaling that it came with."""
    step = control_step(config.finetune, window=base.window)
    # Its batch size is not the schedule's, so a micro-batch size that divides that need not divide it.
    finetune_config = replace(config.finetune, micro_batch_size=None, short_share=0.0, learn_factors=False)
    return train_model(
        base.path,
        [TrainingStep(step, base.start_scaling, config.seed + 1, "control", "control")],
        replace(config, finetune=finetune_config),
        base,
        state_folder=state_folder,
        checkpoint=checkpoint,
        label="control",
    )
