"""The LightningModule of fine-tuning: loss, optimizer, learning rate, and steps that must not count."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from ropewalk.config import FinetuneConfig, FinetuneStepConfig, ParallelConfig
from ropewalk.corpus.segments import Rows
from ropewalk.finetune.loss import batch_loss
from ropewalk.finetune.shard import Shard, check_same_training, shard_of_this_process
from ropewalk.finetune.strategy import split_weights
from ropewalk.finetune.windows import MixedRows
from ropewalk.rope import LearnedScaling, RotaryEmbedding, find_rotary

_BETAS = (0.9, 0.95)


class FinetuneModule(L.LightningModule):
    """A model trained by AdamW with warm-up, then linear decay or a constant learning rate (LongRoPE, App. A).

    Args:
        learned: the scaling that is trained with the weights; None if it stays as it is.
        window: tokens of the original window, in which packed rows are read.
        parallel: the devices; a single one by default.
        compute_dtype: as `ropewalk.finetune.strategy.split_weights` takes it, where weights are split.
    """

    gradient_norm: float = math.nan
    """Norm of the gradient of the last step, before clipping."""

    def __init__(
        self,
        model: PreTrainedModel,
        step: FinetuneStepConfig,
        *,
        options: FinetuneConfig,
        learned: LearnedScaling | None = None,
        window: int = 0,
        parallel: ParallelConfig | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model, self.step, self.options = model, step, options
        self.learned, self.window = learned, window
        self.parallel = parallel or ParallelConfig(name="single_device")
        self.compute_dtype = compute_dtype
        self.shard = Shard()
        self.loss_by_position: dict[str, tuple[float, int]] = {}
        """Sum of the losses and number of tokens of the current step by bucket of positions (`BatchLoss`)."""
        self._bad: str | None = None
        self._bad_in_a_row = 0
        # Frozen weights are not saved, since the model's own checkpoint has them.
        self.strict_loading = all(parameter.requires_grad for parameter in model.parameters())

    def setup(self, stage: str) -> None:
        check_same_training(Path(self.trainer.default_root_dir))
        self.shard = shard_of_this_process(self.parallel)

    def configure_model(self) -> None:
        # A second trainer calls this again.
        if self.parallel.strategy == "fsdp" and not isinstance(self, FSDPModule):
            assert self.device_mesh is not None
            mesh, whole = self.device_mesh["data_parallel"], set(self._factors())
            split_weights(self, self.model, mesh, whole=whole, compute_dtype=self.compute_dtype)

    def training_step(self, batch: Rows | MixedRows, batch_idx: int) -> Tensor:
        if self.learned is not None:
            rotary = find_rotary(self.model)[1]
            assert isinstance(rotary, RotaryEmbedding)
            # Not after the optimizer's step, when a checkpoint may already have been saved.
            self.learned.project()
            self.learned.put_into(rotary)
        every = self.options.positions_every
        losses = batch_loss(
            self.model,
            batch,
            shard=self.shard,
            window=self.window,
            answer_weight=self.options.answer_weight,
            long_context_weight=self.options.long_context_weight,
            by_position=every > 0 and self.global_step % every == 0,
        )
        if not torch.isfinite(losses.loss):
            self._note_bad(f"the loss of step {self.global_step} is {losses.loss.item()}")
        else:
            for name, (total, count) in losses.by_position.items():
                total_before, count_before = self.loss_by_position.get(name, (0.0, 0))
                self.loss_by_position[name] = (total_before + total, count_before + count)
        return losses.loss

    def _note_bad(self, what: str) -> None:
        """Mark a step that must not change the weights; raises ValueError after options.bad_steps of them in a row."""
        self._bad = what
        if self._bad_in_a_row >= self.options.bad_steps:
            before = f"{self._bad_in_a_row + 1} steps in a row gave no number: " if self._bad_in_a_row else ""
            raise ValueError(f"{before}{what}; lower finetune's learning_rate or use float32")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.parallel.strategy == "fsdp":
            # FSDP has averaged the gradients of the weights that it splits, but not those of the factors.
            for parameter in self._factors():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.shard.world
        norms = [get_total_norm(kind) for kind in self._gradients()]
        self.gradient_norm = math.hypot(*(float(n.full_tensor() if isinstance(n, DTensor) else n) for n in norms))
        # A scaler for float16 deals with infinities itself, and they are no fault.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if self._bad is None and not scaled and not math.isfinite(self.gradient_norm):
            self._note_bad(f"the gradient of step {self.global_step} is {self.gradient_norm}")
        if self._bad is None:
            self._bad_in_a_row = 0
            return
        self._bad, self._bad_in_a_row = None, self._bad_in_a_row + 1
        # Without a gradient the optimizer changes neither a weight nor its moments.
        for parameter in self.parameters():
            parameter.grad = None

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # torch's clipping does not take split and whole gradients together.
        if gradient_clip_val:
            factor = min(1.0, gradient_clip_val / (self.gradient_norm + 1e-6))
            for gradients in self._gradients():
                torch._foreach_mul_(gradients, factor)

    def _gradients(self) -> list[list[Tensor]]:
        """The gradients that are split over processes, and those that are whole; without empty lists."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        kinds = ([part for part in gradients if isinstance(part, DTensor) == split] for split in (True, False))
        return [kind for kind in kinds if kind]

    def _factors(self) -> list[torch.nn.Parameter]:
        return [] if self.learned is None else list(self.learned.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = _architecture(self.model)
        checkpoint["bad_in_a_row"] = self._bad_in_a_row
        if not self.strict_loading:
            state = checkpoint["state_dict"].items()
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {name: value for name, value in state if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved, architecture = checkpoint.get("architecture"), _architecture(self.model)
        if saved is not None and saved != architecture:
            raise ValueError(
                f"the saved state is of {saved}, but the model is {architecture}; remove the state to begin afresh"
            )
        self._bad_in_a_row = checkpoint.get("bad_in_a_row", 0)

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.dtype.itemsize < torch.float32.itemsize:
                raise ValueError(
                    f"weights must be trained in float32, found {parameter.dtype}, in which most steps are rounded "
                    "away; load the model in float32, or train adapters with finetune.lora.rank"
                )
        groups = [{"params": trained, "lr": self.step.learning_rate}]
        if self.learned is not None:
            rate = self.options.factors_learning_rate
            groups.append({"params": self._factors(), "lr": rate, "weight_decay": 0.0})
        optimizer = make_optimizer(self.options.optimizer, groups, weight_decay=self.options.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def learning_rate_factor(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` as a fraction of the peak."""
        warmup = min(self.step.warmup_steps, self.step.steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.step.decay == "constant":
            return 1.0
        return max(self.step.steps - step, 0) / max(self.step.steps - warmup, 1)


def _architecture(model: PreTrainedModel) -> str:
    """Class and sizes of the models that a saved state fits."""
    text = model.config.get_text_config()
    sizes = f"{text.num_hidden_layers} layers of width {text.hidden_size} and {text.vocab_size} tokens"
    return f"{type(model).__name__} with {sizes}"


def make_optimizer(name: str, groups: list[dict[str, Any]], *, weight_decay: float) -> Optimizer:
    """The optimizer ``name`` for parameter groups with a rate each; raises ValueError where bitsandbytes is missing."""
    if name != "adamw_8bit":
        fused = True if name == "adamw_fused" else None
        adamw = AdamW(groups, betas=_BETAS, weight_decay=weight_decay, fused=fused)
        # Lightning refuses to clip gradients of a fused optimizer, which could undo the scaling of float16 itself.
        adamw._step_supports_amp_scaling = False
        return adamw
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ValueError(
            "finetune.optimizer=adamw_8bit needs the package bitsandbytes; pip install 'ropewalk[low-memory]'"
        ) from None
    optimizer: Optimizer = AdamW8bit(groups, betas=_BETAS, weight_decay=weight_decay)
    return optimizer
