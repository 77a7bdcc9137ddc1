"""Lightning's strategies for several devices, and the weights of a model split over them and gathered again."""

import copy
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ropewalk.config import ParallelConfig
from ropewalk.models import sharded
from ropewalk.models.checkpoints import rotating
from ropewalk.models.head import layers_of


def trainer_strategy(parallel: ParallelConfig, *, keep_checkpoints: int) -> Strategy | str:
    """The strategy of Lightning's Trainer."""
    if parallel.strategy == "ddp":
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    if parallel.strategy == "single_device":
        return "auto"
    # Weights are split over all devices, including those that share rows.
    return ShardedStrategy(devices=parallel.devices * parallel.nodes, keep_checkpoints=keep_checkpoints)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints are written by every process, its own shards, while the training goes on.

    They are read on any number of devices, as are the files that the other strategies write. Lightning's own strategy
    waits until they are written, writes them in place, and reads no frozen weights.
    """

    def __init__(self, *, devices: int, keep_checkpoints: int) -> None:
        super().__init__(data_parallel_size=devices, tensor_parallel_size=1)
        self._keep = keep_checkpoints
        self._group: dist.ProcessGroup | None = None
        self._saving: Future[Any] | None = None
        self._aside = ExitStack()

    def setup_environment(self) -> None:
        super().setup_environment()
        # The threads that write talk to each other beside the training, and of tensors in main memory.
        self._group = dist.new_group(backend="gloo")

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model, options=StateDictOptions(ignore_frozen_params=not self._strict))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        assert self.model is not None
        return get_optimizer_state_dict(self.model, getattr(optimizer, "optimizer", optimizer))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        self._end_saving()
        path, tensors = Path(filepath), sharded.split_off_tensors(checkpoint)
        aside = self._aside.enter_context(rotating(path, self._keep)) if self.is_global_zero else None
        folder = self.broadcast(aside)
        assert folder is not None
        writer = sharded.ShardWriter(folder, checkpoint, self._aside.close)
        saving = async_save(tensors, storage_writer=writer, process_group=self._group)
        assert isinstance(saving, Future)
        self._saving = saving

    def _end_saving(self) -> None:
        """Wait until the last checkpoint is written, and raise what failed in any process."""
        if self._saving is None:
            return
        wait([self._saving])
        saving, self._saving = self._saving, None
        with self._aside:
            try:
                saving.result()
            except CheckpointException as error:
                raise next(iter(error.failures.values()))[0] from None

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        assert self.model is not None
        states = [self.optimizer_state(optimizer) for optimizer in self.optimizers]
        options = StateDictOptions(strict=self._strict)
        if path.is_dir():
            checkpoint = sharded.read(path, self.lightning_module_state_dict(), states)
        else:
            # A file of another strategy, of which only the first process reads the tensors, one after the other.
            options = replace(options, full_state_dict=True, broadcast_from_rank0=True)
            checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
            for own, saved in zip(states, checkpoint["optimizer_states"], strict=True):
                _name_parameters(saved, own["param_groups"])
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self.model, optimizer, state, options=options)
        return checkpoint

    def teardown(self) -> None:
        try:
            self._end_saving()
        finally:
            if self._group is not None:
                dist.destroy_process_group(self._group)
                self._group = None
            super().teardown()

    @property
    def _strict(self) -> bool:
        assert self.lightning_module is not None
        return self.lightning_module.strict_loading


def _name_parameters(state: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Let an optimizer's ``state``, which numbers the parameters, name them as ``groups`` do."""
    names = [name for group in groups for name in group["params"]]
    state["state"] = {names[number]: values for number, values in state["state"].items()}
    for saved, own in zip(state["param_groups"], groups, strict=True):
        saved["params"] = own["params"]


@contextmanager
def to_train(model: nn.Module, parallel: ParallelConfig) -> Iterator[Any]:
    """Yield ``model``, or a twin of it if weights are to be split; the model takes over the twin's weights on exit.

    A module whose weights were split stays of another class, and could not be split or trained again.
    """
    if parallel.strategy != "fsdp":
        yield model
        return
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    yield twin
    for (name, parameter), (_, trained) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert parameter.numel() == 0, name
        parameter.data = trained.data


def split_weights(
    module: nn.Module, model: Any, mesh: DeviceMesh, *, whole: set[nn.Parameter], compute_dtype: torch.dtype | None
) -> None:
    """Split the weights of ``model``, a part of ``module``, over ``mesh`` layer by layer (FSDP2).

    The former parameters are left empty.

    Args:
        whole: parameters that every process keeps as a whole.
        compute_dtype: dtype in which a layer's weights are gathered and used; gradients are summed in float32. By
            default that of the weights.
    """
    # Autocast would keep a copy of every layer's weights until the end of the pass, and float32 inputs of layers.
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=compute_dtype and torch.float32)
    # Weights outside the layers (embeddings, last norm, output matrix) are gathered for the whole step, since the loss
    # uses the output matrix itself.
    for part in (*layers_of(model), module):
        before = set(part.parameters()) - whole
        fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=whole, reshard_after_forward=part is not module)
        for parameter in before:
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.new_empty(0)
    register_fsdp_forward_method(module, "training_step")


def gather_full_parameters(model: nn.Module) -> None:
    """Replace split weights by whole ones in the processor's memory, in place; every process must call it."""
    whole: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            full = parameter.full_tensor().detach().cpu()
            whole[id(parameter)] = nn.Parameter(full, requires_grad=parameter.requires_grad)
    # Module by module, so that tied weights stay tied.
    for module in model.modules():
        for name, old in module._parameters.items():
            if id(old) in whole:
                module._parameters[name] = whole[id(old)]
