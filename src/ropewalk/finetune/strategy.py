"""Lightning's strategies for several devices, and a sharded model's weights put together again."""

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from ropewalk.config import ParallelConfig


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
        options["strategy"] = ModelParallelStrategy(
            data_parallel_size=parallel.devices * parallel.nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    return options


def shard(module: nn.Module, model: Any, mesh: DeviceMesh) -> None:
    """Split ``model``'s weights over ``mesh`` (FSDP2), layer by layer, below ``module`` and its training_step."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    for layer in model.modules():
        if type(layer).__name__ in names:
            fully_shard(layer, mesh=mesh)
    # What is no layer's (embeddings, the last norm, the output matrix) is whole from here to the end of the step, since
    # the loss uses the output matrix itself.
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(module, "training_step")


def put_together(model: nn.Module, *, here: bool) -> None:
    """Replace sharded weights by whole ones in the processor's memory, in place; every process must call it.

    Args:
        here: whether this process keeps them; the others are left with empty weights.
    """
    whole: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            full = parameter.full_tensor().detach()
            kept = full.cpu() if here else torch.empty(0, dtype=full.dtype)
            whole[id(parameter)] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
    # By module, so that weights that are tied stay so.
    for module in model.modules():
        for name, old in module._parameters.items():
            if id(old) in whole:
                module._parameters[name] = whole[id(old)]
