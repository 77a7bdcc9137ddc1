"""A search on a model and a list of documents, without the pipeline."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ropewalk.config import SearchConfig
from ropewalk.rope import RopeScaling, rotary_shape
from ropewalk.rope.scaling import su_attention_factor
from ropewalk.search.fitness import Fitness, Part
from ropewalk.search.space import N_HATS, SearchSpace
from ropewalk.search.study import Search


def search_factors(
    model: Any,
    tokenizer: Any,
    documents: Sequence[str],
    *,
    target_length: int,
    first: RopeScaling | None = None,
    config: SearchConfig | None = None,
    seed: int = 0,
) -> RopeScaling:
    """The scaling under which ``model`` reads the documents best, for inputs of ``target_length`` tokens.

    Args:
        documents: texts; those of fewer than ``target_length`` tokens are left out, `ropewalk.config.SearchConfig`'s
            ``documents`` are read.
        first: scaling that the model was trained under, such as a published checkpoint's own; the search starts from
            its window, and what it finds is composed with it. None for plain RoPE.
        config: budget of the search; by default 24 gradient steps without evolution.

    Raises:
        ValueError: no document is long enough, the target is not above the model's window, or the model has no
            rotary table that can be extended.
    """
    config = config or SearchConfig(name="gradient", gradient_steps=24, trials=0)
    shape = rotary_shape(model)
    window = first.target_length if first else shape.original_length
    if target_length <= window:
        raise ValueError(f"target_length must be above the model's window of {window} tokens")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    tokens = [[*begin, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in documents]
    long = [torch.tensor(ids) for ids in tokens if len(ids) >= target_length]
    if not long:
        longest = max(map(len, tokens), default=0)
        raise ValueError(f"no document has {target_length} tokens; the longest has {longest}")
    su = su_attention_factor(target_length / shape.original_length, shape.original_length)
    low, high = config.attention_factor or (su, su)
    space = SearchSpace(
        rotary_dim=shape.rotary_dim,
        base=shape.base,
        original_length=window,
        target_length=target_length,
        upper=config.upper_ratio * target_length / window,
        step=config.step,
        attention_factors=(low, high),
        n_hats=tuple(n for n in N_HATS if n <= shape.original_length),
    )

    def segments(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        chosen = [long[rng.integers(len(long))] for _ in range(config.gradient_rows)]
        starts = [int(rng.integers(len(ids) - target_length + 1)) for ids in chosen]
        return torch.stack([ids[start : start + target_length] for ids, start in zip(chosen, starts, strict=True)])

    starts = space.starts_on_top(first.attention_factor) if first else []
    rows = torch.stack([ids[:target_length] for ids in long[: config.documents]])
    with TemporaryDirectory() as folder:
        search = Search(
            fitness=Fitness(model, (Part(rows),), first),
            batch=segments,
            space=space,
            config=config,
            seed=seed,
            state_folder=Path(folder),
            starts=tuple(starts),
        )
        return search.run().best
