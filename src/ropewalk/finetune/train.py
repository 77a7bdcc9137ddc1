"""One step of the progressive schedule: a model trained at one length under one RopeScaling, resumable after a kill."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ropewalk.config import FinetuneConfig, FinetuneStepConfig, ParallelConfig
from ropewalk.corpus.store import TokenStore
from ropewalk.files import writing
from ropewalk.finetune.adapters import adapters
from ropewalk.finetune.data import SegmentData
from ropewalk.finetune.gathered import Slices
from ropewalk.finetune.history import History
from ropewalk.finetune.memory import training_work, within_memory_of
from ropewalk.finetune.module import FinetuneModule
from ropewalk.finetune.strategy import gather_full_parameters, to_train, trainer_strategy
from ropewalk.finetune.utilisation import flops_per_token, peak_flops
from ropewalk.models.activation_checkpointing import checkpointed
from ropewalk.models.checkpoints import (
    LastCheckpoint,
    SeededBatches,
    WholeCheckpointIO,
    fit,
    newest_checkpoint,
    steps_done,
)
from ropewalk.models.head import base_model, layers_of
from ropewalk.models.precision import resolve_precision
from ropewalk.models.progress import TrainingProgress
from ropewalk.rope import LearnedScaling, RopeScaling, extend


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: TokenStore,
    step: FinetuneStepConfig,
    config: FinetuneConfig,
    *,
    scaling: RopeScaling | None,
    seed: int,
    state_folder: Path,
    label: str,
    logger: Logger | None = None,
    earlier: Sequence[Mapping[str, float]] = (),
    parallel: ParallelConfig | None = None,
) -> list[dict[str, float]]:
    """Train ``model`` in place and return a row per optimizer step; resumes from ``state_folder``'s last checkpoint.

    Args:
        scaling: what the model is extended by first; None trains under plain RoPE, without short rows or learned
            factors. With ``config.learn_factors`` the model has the learned scaling afterwards (`current_scaling`).
        parallel: the devices; a single one by default. Weights that were split are whole in every process afterwards,
            in the processor's memory.
        earlier: rows of the schedule's steps before this one, whose numbers the new ones continue.

    Raises:
        ValueError: no document is long enough, the devices cannot share the rows or the length evenly, or the loss was
            not a number too often.
        MemoryError: memory does not suffice; the message names settings that would help.
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    L.seed_everything(seed, verbose=False)
    parallel = parallel or ParallelConfig(name="single_device")
    if parallel.context > 1:
        Slices(0, parallel.context).check(step.length)
    groups = parallel.devices * parallel.nodes // parallel.context
    precision = resolve_precision(config.precision)
    mixes_shards = parallel.strategy == "fsdp" and precision == "bf16-mixed"
    dtype, gpu = str(model.dtype).removeprefix("torch."), torch.cuda.is_available()
    work = training_work(step, config, parallel, mixed="mixed" in precision, dtype=dtype, gpu=gpu)
    if scaling is not None:
        extend(model, scaling)
    last = state_folder / "last.ckpt"
    newest = newest_checkpoint(last)
    window = scaling.original_length if scaling is not None else 0
    learned = LearnedScaling(scaling, device=model.device) if scaling is not None and config.learn_factors else None
    data = SegmentData(
        store,
        tokenizer,
        step,
        config,
        # All groups together; each reads its own rows of a batch.
        micro_batch_size=groups * work.micro_batch_size,
        seed=seed,
        first_step=steps_done(newest),
        window=window,
    )
    trainer = L.Trainer(
        max_steps=step.steps,
        # Split weights are gathered in bfloat16 in place of autocast.
        precision="32-true" if mixes_shards else precision,
        accumulate_grad_batches=data.accumulate,
        gradient_clip_val=config.gradient_clip,
        logger=logger or False,
        default_root_dir=state_folder,
        enable_model_summary=False,
        plugins=[WholeCheckpointIO(config.keep_checkpoints)],
        strategy=trainer_strategy(parallel, keep_checkpoints=config.keep_checkpoints),
        devices=parallel.devices,
        num_nodes=parallel.nodes,
        use_distributed_sampler=False,
        callbacks=[SeededBatches(seed), LastCheckpoint(last, config.checkpoint_every), TrainingProgress(label)],
    )
    with (
        to_train(model, parallel) as trained,
        adapters(trained, config.lora),
        _prepared(trained, config, parallel),
    ):
        peak = peak_flops(precision, device=trainer.strategy.root_device, tflops=config.peak_tflops)
        token_seconds = flops_per_token(trained, length=step.length) / (trainer.world_size * peak)
        history = History(step, token_seconds=token_seconds, earlier=earlier)
        # Before LastCheckpoint, so that a checkpoint holds the row of its own step.
        trainer.callbacks.insert(1, history)  # type: ignore[attr-defined]
        module = FinetuneModule(
            trained, step, options=config, learned=learned, window=window, parallel=parallel,
            compute_dtype=torch.bfloat16 if mixes_shards else None,
        )  # fmt: skip
        with within_memory_of(work, model.config):
            fit(trainer, module, data, checkpoint=newest)
        gather_full_parameters(trained)
    if learned is not None:
        learned.project()
        extend(model, learned.scaling())
    return history.rows


@contextmanager
def _prepared(model: PreTrainedModel, config: FinetuneConfig, parallel: ParallelConfig) -> Iterator[None]:
    """Prepare the model for training as ``config`` asks for, and undo it on exit."""
    attention = model.config._attn_implementation
    # Layers alike share one compiled graph. Splitting them changes their class, by which they are found here.
    compiled = (layers_of(model) or [base_model(model)]) if config.compile else []
    for part in compiled:
        part.compile()
    model.train()
    try:
        with checkpointed(model, config.activation_checkpointing):
            yield
    finally:
        model.eval()
        if parallel.context > 1:
            model.set_attn_implementation(attention)
        for part in compiled:
            part._compiled_call_impl = None


def save_checkpoint(model: Any, tokenizer: Any, scaling: RopeScaling | None, folder: Path) -> None:
    """Write the weights as safetensors with a plain RoPE config, the tokenizer and the scaling, all or nothing."""
    with writing(folder) as aside:
        aside.mkdir()
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if scaling is not None:
            (aside / "scaling.json").write_text(scaling.to_json())
