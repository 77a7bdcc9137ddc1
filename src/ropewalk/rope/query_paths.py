"""Where the queries of a transformers model can be scaled: the last weights on their way to the attention scores.

Classes differ in the names and the layout of these weights: a matrix of its own or one fused with keys and values, in
blocks or head by head, and a norm behind it that undoes every scale before. So the place is measured instead of looked
up. In a forward pass in which attention returns zeros, so that no layer's queries depend on another layer's, the
outputs of each candidate are multiplied by numbers that differ by head. With the right candidate, the queries that
reach the attention function are multiplied by exactly these numbers. Which dimensions are rotated as a pair is measured
in the same way.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

_NAME = "ropewalk_queries"
_TOKENS = 8
"""Length of the row that is read; the fastest pairs turn enough over it to be told apart."""
_QUERIES: ContextVar[dict[nn.Module, Tensor]] = ContextVar("queries")


@dataclass(frozen=True, eq=False)
class QueryPath:
    """A module whose outputs include the queries of a layer, so that each dimension of each head can be scaled."""

    name: str
    """The module's name within its attention."""
    module: nn.Module
    places: Tensor
    """(heads, head_dim): index of each query dimension among the rows of a matrix or the weights of a norm. The rows
    are the same where one norm serves all heads."""

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def is_projection(self) -> bool:
        return isinstance(self.module, nn.Linear)

    @property
    def is_shared(self) -> bool:
        """Whether a norm of one head's size serves all heads, so that they share their scales."""
        return not self.is_projection and self.weight.numel() < self.places.numel()

    def multipliers(self, scales: Tensor) -> Tensor:
        """What the module's outputs are multiplied by for ``scales`` (heads, head_dim) of the queries; with gradient.

        For heads that share their scales it is the mean, so that all of them get the gradient.
        """
        if self.is_shared:
            return scales.mean(0)
        shape = self.weight.shape[:1] if self.is_projection else self.weight.shape
        places = self.places.flatten().to(scales.device)
        return scales.new_ones(shape.numel()).scatter(0, places, scales.flatten()).view(shape)


def query_paths(model: Any) -> tuple[QueryPath, ...]:
    """The path of every layer that attends, in the order of the layers.

    A class that clips its queries, such as DBRX, clips the scaled ones.

    Raises:
        ValueError: no weights scale the queries of a layer alone, or layers differ in the number of heads.
    """
    class_name, plain = type(model).__name__, _queries(model, {})
    if not plain:
        raise ValueError(f"{class_name} computes its attention in a way that query scales do not reach; leave them out")
    sizes = {attention: (query.shape[1], query.shape[3]) for attention, query in plain.items()}
    if len(heads := {size[0] for size in sizes.values()}) > 1:
        raise ValueError(
            f"{class_name} has layers of {' and '.join(map(str, sorted(heads)))} query heads, which one table of query "
            "scales does not fit; leave them out"
        )
    candidates = {attention: list(_candidates(attention, *size)) for attention, size in sizes.items()}
    best: dict[nn.Module, tuple[float, QueryPath]] = {}
    for number in range(max(map(len, candidates.values()))):
        tried = {attention: paths[number] for attention, paths in candidates.items() if number < len(paths)}
        scales = {attention: _distinct_scales(path, 1).expand(sizes[attention]) for attention, path in tried.items()}
        for attention, error in _relative_errors(model, plain, tried, scales, scales).items():
            if attention not in best or float(error.max()) < best[attention][0]:
                best[attention] = float(error.max()), tried[attention]
    for attention in plain:
        if attention not in best or best[attention][0] > _tolerance(plain):
            names = ", ".join(dict.fromkeys(path.name for path in candidates[attention])) or "nothing"
            raise ValueError(
                f"{class_name} has no weights that scale the queries of {type(attention).__name__} alone (tried "
                f"{names}), such as where they are normalised without weights; leave query scales out"
            )
    paths = tuple(path for _, path in (best[attention] for attention in plain))
    if len({path.module for path in paths}) < len(paths):
        raise ValueError(f"{class_name} has layers that share the weights of their queries; leave query scales out")
    return paths


def pair_of_dimension(model: Any, paths: tuple[QueryPath, ...], pairs: int) -> Tensor:
    """(head_dim,): the dimension pair of each output dimension of a head, -1 for those that do not rotate.

    Raises:
        ValueError: heads differ in size, or the dimensions that rotate as a pair cannot be determined.
    """
    plain = _queries(model, {})
    if len(sizes := {path.places.shape[1] for path in paths}) > 1:
        raise ValueError(
            f"{type(model).__name__} has heads of {' and '.join(map(str, sorted(sizes)))} dimensions; give a scale per "
            "head, not per pair"
        )
    (size,) = sizes
    tried = dict(zip(plain, paths, strict=True))
    dimension_scales = {attention: _distinct_scales(path, size) for attention, path in tried.items()}
    shares = torch.stack(
        [error.amax(0) for error in _relative_errors(model, plain, tried, dimension_scales, dimension_scales).values()]
    )
    # Rotation mixes the two dimensions of a pair, so different scales of the two do not survive it.
    is_rotated = (shares > _tolerance(plain)).any(0)
    layouts = [layout for layout in _layouts(size, pairs) if (layout[is_rotated] >= 0).all()]
    errors = {}
    # Some classes reorder the dimensions when they rotate them, so that the pairs come out elsewhere.
    for before, after in product(range(len(layouts)), repeat=2):
        scales = {attention: _distinct_scales(path, pairs) for attention, path in tried.items()}
        scaled = [
            {attention: spread(pair_scales, layouts[place]) for attention, pair_scales in scales.items()}
            for place in (before, after)
        ]
        errors[before, after] = max(
            float(error.max()) for error in _relative_errors(model, plain, tried, *scaled).values()
        )
    best = min(errors, key=lambda key: errors[key], default=None)
    if best is None or errors[best] > _tolerance(plain):
        raise ValueError(
            f"{type(model).__name__} does not show which dimensions of its queries rotate as a pair; give a scale per "
            "head, not per pair"
        )
    return layouts[best[0]]


def spread(scales: Tensor, pair_of: Tensor) -> Tensor:
    """(…, pairs) scales as (…, head_dim), with 1 for the dimensions that do not rotate; with gradient."""
    padded = torch.cat((scales, scales.new_ones(*scales.shape[:-1], 1)), dim=-1)
    return padded[..., pair_of.to(scales.device)]


def _layouts(size: int, pairs: int) -> Iterator[Tensor]:
    """The pair of each dimension of a head, -1 for none: the halves or neighbours, of its first or last dimensions."""
    for start in dict.fromkeys((0, size - 2 * pairs)):
        for pair in (torch.arange(pairs).repeat(2), torch.arange(pairs).repeat_interleave(2)):
            layout = torch.full((size,), -1)
            layout[start : start + 2 * pairs] = pair
            yield layout


def _candidates(attention: nn.Module, heads: int, size: int) -> Iterator[QueryPath]:
    """Paths by every matrix and norm with a q in its name, in every layout that its size allows."""
    device = next(attention.parameters()).device
    head, dimension = torch.arange(heads, device=device)[:, None], torch.arange(size, device=device)
    for name, module in attention.named_modules():
        weight = getattr(module, "weight", None)
        if "q" not in name.lower() or not isinstance(weight, Tensor):
            continue
        if not isinstance(module, nn.Linear):
            if weight.numel() == size:
                yield QueryPath(name, module, dimension.expand(heads, size))
            elif weight.numel() == heads * size:
                yield QueryPath(name, module, head * size + dimension)
            continue
        rows = len(weight)
        if rows < heads * size:
            continue
        # All queries first; or every head's first, before its keys, values or gate.
        starts = {head_size: head * head_size for head_size in (size, rows // heads)}
        groups = (rows // size - heads) // 2
        if groups and heads % groups == 0:
            # The queries of a group of heads, then their common key and value.
            starts[0] = (head // (heads // groups) * (heads // groups + 2) + head % (heads // groups)) * size
        for start in starts.values():
            if (start + dimension).max() < rows:
                yield QueryPath(name, module, start + dimension)


def _distinct_scales(path: QueryPath, count: int) -> Tensor:
    """(heads, count) scales that differ as much as ``path`` allows, the same on every call."""
    heads = len(path.places)
    shape = (1 if path.is_shared else heads, count)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).expand(heads, count) * 1.5 + 0.5


def _relative_errors(
    model: Any,
    plain: Mapping[nn.Module, Tensor],
    tried: Mapping[nn.Module, QueryPath],
    before: Mapping[nn.Module, Tensor],
    after: Mapping[nn.Module, Tensor],
) -> dict[nn.Module, Tensor]:
    """(heads, head_dim): distance of the queries from ``plain`` times ``after`` where paths multiply by ``before``.

    It is relative to the root mean square over the head's dimensions. ``before`` and ``after`` have that shape too.
    """
    shares = {}
    scaled = _queries(model, {path: before[attention] for attention, path in tried.items()})
    for attention in tried:
        expected = plain[attention] * after[attention].to(plain[attention])[:, None]
        error, norm = (part.float().norm(dim=(0, 2)).cpu() for part in (scaled[attention] - expected, expected))
        size = norm.square().mean(-1, keepdim=True).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        shares[attention] = (error / size).nan_to_num(torch.inf)
    return shares


def _tolerance(queries: Mapping[nn.Module, Tensor]) -> float:
    """Largest relative error that rounding explains; the wrong place or layout makes one of about 0.5."""
    return 16 * max(torch.finfo(query.dtype).eps for query in queries.values())


@torch.no_grad()
def _queries(model: Any, scales: Mapping[QueryPath, Tensor]) -> dict[nn.Module, Tensor]:
    """Queries (1, heads, tokens, head_dim) of a short row by attention module, where ``scales`` multiply the paths."""
    queries: dict[nn.Module, Tensor] = {}
    ids = torch.arange(3, 3 + _TOKENS, device=next(model.parameters()).device)[None]
    attention, is_training = model.config._attn_implementation, model.training
    token = _QUERIES.set(queries)
    with ExitStack() as hooks:
        hooks.callback(_QUERIES.reset, token)
        hooks.callback(model.train, is_training)
        hooks.callback(model.set_attn_implementation, attention)
        for path, factors in scales.items():
            multipliers = path.multipliers(factors)
            hook = path.module.register_forward_hook(partial(_multiply, multipliers))
            hooks.callback(hook.remove)
        model.eval()
        model.set_attn_implementation(_NAME)
        model(input_ids=ids, use_cache=False)
    return queries


def _multiply(multipliers: Tensor, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * multipliers.to(output)


def _record_queries(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """transformers' attention function, which keeps the queries and returns zeros."""
    _QUERIES.get()[module] = query
    rows, heads, tokens, _size = query.shape
    return value.new_zeros(rows, tokens, heads, value.shape[-1]), None


AttentionInterface.register(_NAME, _record_queries)
# Some classes choose by the mask which keys to attend to.
AttentionMaskInterface.register(_NAME, eager_mask)
