"""Lightning's strategies for several devices, and the weights of a model split over them and gathered again."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    OptimStateKeyType,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from ropewalk.config import ParallelConfig

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def trainer_strategy(parallel: ParallelConfig) -> Strategy | str:
    """The strategy of Lightning's Trainer."""
    if parallel.strategy == "ddp":
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    if parallel.strategy == "single_device":
        return "auto"
    # Weights are split over all devices, including those that share rows. A checkpoint is one whole file, so that a
    # training resumes under any strategy and on any number of devices.
    return ShardedStrategy(
        data_parallel_size=parallel.devices * parallel.nodes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 with the checkpoints of the other strategies, of trained weights and optimizer states in the same order.

    Lightning's own strategy numbers the optimizer states by all weights, including frozen ones.
    """

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model, options=replace(_WHOLE, ignore_frozen_params=not self._strict))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        optimizer = getattr(optimizer, "optimizer", optimizer)
        assert self.model is not None
        state: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer, options=_WHOLE)
        if self.global_rank:
            return state
        return FullyShardedDataParallel.rekey_optim_state_dict(
            state, OptimStateKeyType.PARAM_ID, self.model, optim=optimizer
        )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        optimizers, self.optimizers = self.optimizers, []
        try:
            checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            self.optimizers = optimizers
        assert self.model is not None
        for optimizer, states in zip(optimizers, checkpoint["optimizer_states"], strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(
                states, OptimStateKeyType.PARAM_NAME, self.model, optim=optimizer
            )
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=self._strict)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=options)
        return checkpoint

    @property
    def _strict(self) -> bool:
        assert self.lightning_module is not None
        return self.lightning_module.strict_loading


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
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [layer for layer in model.modules() if type(layer).__name__ in names]
    # Weights outside the layers (embeddings, last norm, output matrix) are gathered for the whole step, since the loss
    # uses the output matrix itself.
    for part in (*layers, module):
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
