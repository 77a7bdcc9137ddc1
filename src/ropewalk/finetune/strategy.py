"""Lightning's strategies for several devices, and a sharded model's weights put together again."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
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
    OptimStateKeyType,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from ropewalk.config import ParallelConfig

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def trainer_options(parallel: ParallelConfig) -> dict[str, Any]:
    """Keyword arguments of Lightning's Trainer."""
    options: dict[str, Any] = {
        "devices": parallel.devices,
        "num_nodes": parallel.nodes,
        "use_distributed_sampler": False,
    }
    if parallel.strategy == "ddp":
        options["strategy"] = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    elif parallel.strategy == "fsdp":
        # Weights are split over all devices, those that share rows too. Checkpoints are whole, in one file, so that a
        # training goes on under any strategy and on any number of devices.
        options["strategy"] = ShardedStrategy(
            data_parallel_size=parallel.devices * parallel.nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    return options


class ShardedStrategy(ModelParallelStrategy):
    """Checkpoints that hold what those of other strategies do: trained weights, and their states in their order.

    Lightning's own would number the states by all weights, frozen ones too.
    """

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model, options=replace(_WHOLE, ignore_frozen_params=not self._strict))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        optimizer = getattr(optimizer, "optimizer", optimizer)
        assert self.model is not None
        found = get_optimizer_state_dict(self.model, optimizer, options=_WHOLE)
        if self.global_rank:
            return found
        return FullyShardedDataParallel.rekey_optim_state_dict(
            found, OptimStateKeyType.PARAM_ID, self.model, optim=optimizer
        )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        optimizers, self.optimizers = self.optimizers, []
        try:
            found = super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            self.optimizers = optimizers
        assert self.model is not None
        for optimizer, states in zip(optimizers, found["optimizer_states"], strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(
                states, OptimStateKeyType.PARAM_NAME, self.model, optim=optimizer
            )
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=self._strict)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=options)
        return found

    @property
    def _strict(self) -> bool:
        assert self.lightning_module is not None
        return self.lightning_module.strict_loading


@contextmanager
def to_train(model: nn.Module, parallel: ParallelConfig) -> Iterator[Any]:
    """``model`` itself, or where weights are to be split a twin with the same weights, which it takes over at the end.

    A module whose weights were split stays of another class, so that it could not be split or trained again.
    """
    if parallel.strategy != "fsdp":
        yield model
        return
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    yield twin
    for (name, parameter), (_, trained) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert parameter.numel() == 0, name
        parameter.data = trained.data


def shard(module: nn.Module, model: Any, mesh: DeviceMesh, *, whole: set[nn.Parameter]) -> None:
    """Split ``model``'s weights over ``mesh`` (FSDP2), layer by layer, below ``module`` and its training_step.

    The parameters as they were are left empty.

    Args:
        whole: parameters that every process keeps.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [layer for layer in model.modules() if type(layer).__name__ in names]
    # What is no layer's (embeddings, the last norm, the output matrix) is whole from here to the end of the step, since
    # the loss uses the output matrix itself.
    for part in (*layers, module):
        before = set(part.parameters()) - whole
        fully_shard(part, mesh=mesh, ignored_params=whole, reshard_after_forward=part is not module)
        for parameter in before:
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.new_empty(0)
    register_fsdp_forward_method(module, "training_step")


def put_together(model: nn.Module) -> None:
    """Replace sharded weights by whole ones in the processor's memory, in place; every process must call it."""
    whole: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            full = parameter.full_tensor().detach().cpu()
            whole[id(parameter)] = nn.Parameter(full, requires_grad=parameter.requires_grad)
    # By module, so that weights that are tied stay so.
    for module in model.modules():
        for name, old in module._parameters.items():
            if id(old) in whole:
                module._parameters[name] = whole[id(old)]
