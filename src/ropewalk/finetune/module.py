"""The LightningModule: next-token loss of long rows under a model's current RopeScaling."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel

from ropewalk.config import FinetuneConfig, FinetuneStepConfig, ParallelConfig
from ropewalk.corpus.segments import Rows
from ropewalk.finetune.optimizer import make_optimizer, trained
from ropewalk.finetune.share import Share, share_here, shared_loss
from ropewalk.finetune.strategy import shard
from ropewalk.finetune.windows import MixedRows, Reading, loss_by_position, read_long, read_mixed
from ropewalk.rope import LearnedScaling, RotaryEmbedding, find_rotary


class FinetuneModule(L.LightningModule):
    """AdamW with warm-up, then linear decay or a constant rate (paper App. A).

    Args:
        options: how it is trained; the defaults of `FinetuneConfig` if left out.
        learned: the scaling that is trained with the weights, if it is.
        window: the original window, which packed rows are read in.
        parallel: the devices; this one alone by default.
    """

    gradient_norm: float = math.nan
    """Of the last step, before clipping."""

    def __init__(
        self,
        model: PreTrainedModel,
        step: FinetuneStepConfig,
        *,
        weight_decay: float,
        options: FinetuneConfig | None = None,
        learned: LearnedScaling | None = None,
        window: int = 0,
        parallel: ParallelConfig | None = None,
    ) -> None:
        super().__init__()
        self.model, self.step, self.weight_decay = model, step, weight_decay
        self.options = options or FinetuneConfig(name="defaults")
        self.learned, self.window = learned, window
        self.parallel = parallel or ParallelConfig(name="one")
        self.share = Share()
        self.loss_by_position: dict[str, tuple[float, int]] = {}
        """Sums and counts of the step at hand, by bucket, in steps where they are read."""
        self._bad: str | None = None
        self._bad_in_a_row = 0
        # Frozen weights lie in the model's own checkpoint.
        self.strict_loading = all(parameter.requires_grad for parameter in model.parameters())

    def setup(self, stage: str) -> None:
        self.share = share_here(self.parallel)

    def configure_model(self) -> None:
        # Called once more by a second trainer.
        if self.parallel.strategy == "fsdp" and not isinstance(self, FSDPModule):
            assert self.device_mesh is not None
            shard(self, self.model, self.device_mesh["data_parallel"], whole=set(self._factors()))

    def training_step(self, batch: Rows | MixedRows, batch_idx: int) -> Tensor:
        if self.learned is not None:
            rotary = find_rotary(self.model)[1]
            assert isinstance(rotary, RotaryEmbedding)
            # Here and not after the optimizer's step, where a checkpoint may already be taken.
            self.learned.project()
            self.learned.put_into(rotary)
        with self._offloading(batch):
            loss, reading = self._read(batch)
        if not torch.isfinite(loss):
            self._note_bad(f"the loss of step {self.global_step} is {loss.item()}")
        elif reading is not None and self._reads_positions():
            for name, (total, count) in loss_by_position(self.model, reading).items():
                before = self.loss_by_position.get(name, (0.0, 0))
                self.loss_by_position[name] = (before[0] + total, before[1] + count)
        return loss

    def _read(self, batch: Rows | MixedRows) -> tuple[Tensor, Reading | None]:
        """The loss, and the reading of long rows where there are any and this process has them whole."""
        weight = self.options.answer_weight
        if self.share.world > 1:
            return shared_loss(self.share, self.model, batch, answer_weight=weight), None
        if isinstance(batch, MixedRows):
            loss, reading = read_mixed(self.model, batch, window=self.window)
        else:
            reading = read_long(self.model, batch.ids, batch.answers if weight else None)
            loss = reading.loss
        if reading is not None and reading.answer_loss is not None:
            loss = loss + weight * reading.answer_loss
        return loss, reading

    def _reads_positions(self) -> bool:
        every = self.options.positions_every
        return every > 0 and self.global_step % every == 0

    def _offloading(self, batch: Any) -> AbstractContextManager[Any]:
        if self.options.activations != "offload":
            return nullcontext()
        tokens = batch.tokens if isinstance(batch, MixedRows) else batch.ids
        return torch.autograd.graph.save_on_cpu(pin_memory=tokens.device.type == "cuda")

    def _note_bad(self, what: str) -> None:
        """Remember a step that must not change the weights; raises ValueError where one too many came in a row."""
        self._bad = what
        if self._bad_in_a_row >= self.options.bad_steps:
            before = f"{self._bad_in_a_row + 1} steps in a row gave no number: " if self._bad_in_a_row else ""
            raise ValueError(f"{before}{what}; lower finetune's learning_rate or use float32")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.parallel.strategy == "fsdp":
            # As DDP does; the gradients of weights that are split have been averaged.
            for parameter in self._factors():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.share.world
        norms = [get_total_norm(kind) for kind in self._gradients()]
        self.gradient_norm = math.hypot(*(float(n.full_tensor() if isinstance(n, DTensor) else n) for n in norms))
        # A scaler for float16 finds infinities itself, and they are no fault.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if self._bad is None and not scaled and not math.isfinite(self.gradient_norm):
            self._note_bad(f"the gradient of step {self.global_step} is {self.gradient_norm}")
        if self._bad is None:
            self._bad_in_a_row = 0
            return
        self._bad, self._bad_in_a_row = None, self._bad_in_a_row + 1
        # Without a gradient the optimizer leaves a weight and its moments as they are.
        for parameter in self.parameters():
            parameter.grad = None

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # torch's own takes no mixture of split gradients and whole ones.
        if gradient_clip_val:
            share = min(1.0, gradient_clip_val / (self.gradient_norm + 1e-6))
            for kind in self._gradients():
                torch._foreach_mul_(kind, share)

    def _gradients(self) -> list[list[Tensor]]:
        """Those that are split over processes, and those that are whole."""
        found = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        kinds = ([part for part in found if isinstance(part, DTensor) == split] for split in (True, False))
        return [kind for kind in kinds if kind]

    def _factors(self) -> list[torch.nn.Parameter]:
        return [] if self.learned is None else list(self.learned.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        parameters = dict(self.named_parameters())
        checkpoint["architecture"] = _architecture(self.model)
        checkpoint["bad_in_a_row"] = self._bad_in_a_row
        if not self.strict_loading:
            state = checkpoint["state_dict"]
            kept = {name: value for name, value in state.items() if _is_trained(parameters.get(name))}
            checkpoint["state_dict"] = kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found, own = checkpoint.get("architecture"), _architecture(self.model)
        if found is not None and found != own:
            raise ValueError(f"the saved state is of {found}, but the model is {own}; remove the state to begin afresh")
        self._bad_in_a_row = checkpoint.get("bad_in_a_row", 0)

    def configure_optimizers(self) -> Any:
        groups = [{"params": trained(self.model.parameters()), "lr": self.step.learning_rate}]
        if self.learned is not None:
            rate = self.options.factors_learning_rate
            groups.append({"params": self._factors(), "lr": rate, "weight_decay": 0.0})
        optimizer = make_optimizer(self.options.optimizer, groups, weight_decay=self.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.share_of_learning_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def share_of_learning_rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` as a share of the peak."""
        warmup = min(self.step.warmup_steps, self.step.steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.step.decay == "constant":
            return 1.0
        return max(self.step.steps - step, 0) / max(self.step.steps - warmup, 1)


def _is_trained(parameter: Any) -> bool:
    return parameter is not None and parameter.requires_grad


def _architecture(model: PreTrainedModel) -> str:
    """Name and size of what a saved state fits."""
    text = model.config.get_text_config()
    sizes = f"{text.num_hidden_layers} layers of width {text.hidden_size} and {text.vocab_size} tokens"
    return f"{type(model).__name__} with {sizes}"
