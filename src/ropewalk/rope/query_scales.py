"""Query scales in a model: applied by hooks, with gradient, or folded into its weights.

A constant that multiplies the queries of a head, or both dimensions of one of its pairs, may as well multiply the
weights that make them, and then any software applies it. Where a norm follows the query matrix, these are the weights
of the norm; heads that are served by one norm share their scales.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from ropewalk.rope.query_paths import QueryPath, pair_of_dimension, query_paths, spread
from ropewalk.rope.scaling import RopeScaling

_ATTRIBUTE = "_ropewalk_query_scales"
"""Where a model keeps its `QueryScales` once it had any, since finding the places takes several short passes."""


class QueryScales:
    """The scales that a model's queries are multiplied by. Without scales, the model has no hooks and no extra cost.

    Made by `query_scales`. A search may assign a tensor that requires a gradient before each forward pass.
    """

    tensor: Tensor | None
    """(layers, heads) or (layers, heads, pairs), as set; None for no scales."""

    def __init__(self, model: nn.Module) -> None:
        self.paths = query_paths(model)
        self.tensor = None
        self._model = model
        self._pair_of: dict[int, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    @property
    def layers(self) -> int:
        """Number of the layers that attend."""
        return len(self.paths)

    @property
    def heads(self) -> int:
        """Number of query heads of a layer."""
        return len(self.paths[0].places)

    @property
    def is_shared(self) -> bool:
        """Whether the heads of a layer share their scales, because one norm serves all of them."""
        return any(path.is_shared for path in self.paths)

    def set(self, scales: Tensor | None) -> None:
        """Multiply the queries by ``scales`` from now on, in place of what was set before; None removes all scales.

        Where heads share their scales and the tensor requires a gradient, a layer's mean over heads is applied, so that
        heads which begin with equal scales keep equal ones.

        Args:
            scales: (layers, heads) or (layers, heads, pairs).

        Raises:
            ValueError: the model has other layers or heads, its pairs cannot be determined, or heads that share their
                scales are given different ones.
        """
        if scales is not None:
            self._check(scales)
        for hook in self._hooks:
            hook.remove()
        self.tensor = scales
        count = 0 if scales is None else self.layers
        self._hooks = [self.paths[layer].module.register_forward_hook(_Hook(self, layer)) for layer in range(count)]

    def table(self, scaling: RopeScaling) -> Tensor | None:
        """The scales of ``scaling`` as `set` takes them; raises ValueError where they are for other sizes."""
        if scaling.query_scales is None:
            return None
        pairs, table = len(scaling.factors), torch.tensor(scaling.query_scales, device=self.paths[0].weight.device)
        if table.shape == (self.layers, self.heads):
            return table
        if table.shape == (self.layers, self.heads * pairs):
            return table.view(self.layers, self.heads, pairs)
        raise ValueError(
            f"found query_scales of {table.shape[0]} rows of {table.shape[1]}, but {type(self._model).__name__} has "
            f"{self.layers} layers of {self.heads} query heads and {pairs} pairs; use scales made for this model"
        )

    def multipliers(self, scales: Tensor, layer: int) -> Tensor:
        """What the outputs of a layer's path are multiplied by for ``scales`` as `set` takes them; with gradient."""
        path, layer_scales = self.paths[layer], scales[layer]
        if layer_scales.ndim == 1:
            return path.multipliers(layer_scales[:, None].expand(path.places.shape))
        return path.multipliers(spread(layer_scales, self._pair_of[scales.shape[-1]]))

    def _check(self, scales: Tensor) -> None:
        if scales.shape[:2] != (self.layers, self.heads) or scales.ndim > 3:
            raise ValueError(
                f"found query scales of the shape {tuple(scales.shape)}, but {type(self._model).__name__} has "
                f"{self.layers} layers of {self.heads} query heads"
            )
        if scales.ndim == 3 and scales.shape[2] not in self._pair_of:
            pair_of = pair_of_dimension(self._model, self.paths, scales.shape[2])
            self._pair_of[scales.shape[2]] = pair_of.to(scales.device)
        for path, layer_scales in zip(self.paths, scales.detach(), strict=True):
            if (
                path.is_shared
                and not scales.requires_grad
                and not torch.allclose(layer_scales, layer_scales[:1], rtol=1e-5)
            ):
                raise ValueError(
                    f"{type(self._model).__name__} normalises the queries of all heads by the weights of one "
                    f"{path.name}, so the heads of a layer must have equal query scales"
                )


class _Hook:
    """Multiplies the outputs of a layer's path; an object instead of a closure, so that it is copied with its model."""

    def __init__(self, scales: QueryScales, layer: int) -> None:
        assert scales.tensor is not None
        self.scales, self.layer = scales, layer
        self.constant = None if scales.tensor.requires_grad else scales.multipliers(scales.tensor, layer)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        assert self.scales.tensor is not None
        multipliers = self.constant
        if multipliers is None:
            # Computed in each pass, so that each has its own graph for the backward pass.
            multipliers = self.scales.multipliers(self.scales.tensor, self.layer)
        return (output * multipliers.to(output.device)).to(output.dtype)


def query_scales(model: nn.Module) -> QueryScales:
    """The model's query scales, none at first.

    Raises:
        ValueError: its queries cannot be scaled (`ropewalk.rope.query_paths.query_paths`).
    """
    scales = getattr(model, _ATTRIBUTE, None)
    if scales is None:
        scales = QueryScales(model)
        setattr(model, _ATTRIBUTE, scales)
    assert isinstance(scales, QueryScales)
    return scales


def applied_scales(model: nn.Module) -> Tensor | None:
    """What `QueryScales.set` was last given for ``model``, None for no scales."""
    scales = getattr(model, _ATTRIBUTE, None)
    return scales.tensor if isinstance(scales, QueryScales) else None


def put_scales(model: nn.Module, scaling: RopeScaling) -> None:
    """Make the model apply the query scales of ``scaling`` in place of any that it has; raises as `query_scales`."""
    if scaling.query_scales is not None or applied_scales(model) is not None:
        scales = query_scales(model)
        scales.set(scales.table(scaling))


def fold(model: nn.Module, scaling: RopeScaling) -> dict[str, Tensor]:
    """Multiply the query scales of ``scaling`` into the weights, and return the former weights by their names.

    The product is rounded once, to the weights' dtype. The model applies no query scales by hooks afterwards.

    Raises:
        ValueError: as `QueryScales.set`, or the weights are not kept as numbers that can be multiplied.
    """
    put_scales(model, scaling)
    if scaling.query_scales is None:
        return {}
    scales = query_scales(model)
    assert scales.tensor is not None
    former_weights: dict[str, Tensor] = {}
    names = {parameter: name for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for layer, path in enumerate(scales.paths):
            multipliers = scales.multipliers(scales.tensor, layer)
            for parameter, folded in _folded(path, multipliers).items():
                former_weights[names[parameter]] = parameter.detach().clone()
                parameter.copy_(folded)
    scales.set(None)
    return former_weights


@contextmanager
def folded(model: nn.Module, scaling: RopeScaling) -> Iterator[None]:
    """`fold` within the block; the former weights and query scales are restored afterwards."""
    scales = applied_scales(model)
    former_weights = fold(model, scaling)
    try:
        yield
    finally:
        if applied_scales(model) is not scales:
            query_scales(model).set(scales)
        with torch.no_grad():
            for name, weight in former_weights.items():
                model.get_parameter(name).copy_(weight)


def _folded(path: QueryPath, multipliers: Tensor) -> dict[nn.Parameter, Tensor]:
    """The values of a path's weights that give its outputs times ``multipliers``, in float32."""
    weight, bias = path.weight, getattr(path.module, "bias", None)
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        raise ValueError(f"query scales cannot be folded into the {path.name} of dtype {weight.dtype}")
    multipliers = multipliers.to(weight.device)
    if path.is_projection:
        values = {weight: weight.float() * multipliers[:, None]}
    else:
        offset = _offset(path.module, weight)
        values = {weight: (weight.float() + offset) * multipliers - offset}
    if isinstance(bias, nn.Parameter):
        values[bias] = bias.float() * multipliers
    return values


def _offset(norm: nn.Module, weight: Tensor) -> float:
    """What a norm adds to its weights before it multiplies by them: 1 in Gemma's, and 0 in most."""
    sample = torch.linspace(-1, 2, weight.numel(), device=weight.device, dtype=weight.dtype).view(1, *weight.shape)
    zero_weights = {name: torch.zeros_like(parameter) for name, parameter in norm.named_parameters()}
    return float(functional_call(norm, zero_weights, (sample,)).any())
