"""What is read before the first trial of a search: the starts, the published methods and the gradient's path."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from optuna.trial import Trial

from ropewalk.rope import RopeScaling
from ropewalk.search.fitness import Evaluation

NOT_A_NUMBER = "every candidate made the model emit NaN or infinite losses; check the model and its dtype"
_KEPT, _GRADIENT = "beginning", "gradient"
"""User attributes of the trial that stands for a beginning: all of it when it is done, and where the gradient is."""


@dataclass(frozen=True)
class Beginning:
    """What was read before the first trial."""

    published: tuple[RopeScaling, ...] = ()
    """Starts and published methods."""
    path: tuple[tuple[float, RopeScaling], ...] = ()
    """Loss and point of every gradient step."""
    known: dict[RopeScaling, Evaluation] = field(default_factory=dict)
    """Points that are read already: the published ones and the path's end."""
    seconds: float = 0.0

    @property
    def read_tokens(self) -> int:
        """Without those of the gradient's steps."""
        return sum(found.forward_tokens for found in self.known.values())


def begin(
    trial: Trial,
    candidates: Sequence[RopeScaling],
    starts: Sequence[RopeScaling],
    *,
    read: Callable[[RopeScaling], Evaluation],
    learn: Callable[[RopeScaling, str | None, Callable[[str], None]], list[tuple[float, RopeScaling]]],
) -> float:
    """Read ``candidates``, learn from the best start, read where that ends, and keep all of it with ``trial``.

    What is read and learned is kept at once, and the retry of a trial whose worker died inherits it.

    Args:
        learn: (start, where an earlier call was, keeper of where this one is) -> path.
        starts: candidates to learn from; where none of them has a loss, the best of all will do.

    Returns:
        Loss of the point that the gradient begins from.

    Raises:
        ValueError: none has a loss.
    """
    begun = time.perf_counter()
    kept = trial.user_attrs
    known: dict[RopeScaling, Evaluation] = {}
    seconds = 0.0

    def look_at(point: RopeScaling) -> None:
        key = f"read {len(known)}"
        nonlocal seconds
        if key in kept:
            known[point] = _evaluation(kept[key])
            seconds += kept[key]["seconds"]
        else:
            start = time.perf_counter()
            known[point] = read(point)
            trial.set_user_attr(key, {**_attr(known[point]), "seconds": time.perf_counter() - start})

    for candidate in candidates:
        look_at(candidate)
    losses = {point: math.inf if found.loss is None else found.loss for point, found in known.items()}
    start = min(candidates, key=lambda point: (losses[point] == math.inf, point not in starts, losses[point]))
    if not math.isfinite(losses[start]):
        raise ValueError(NOT_A_NUMBER)
    path = learn(start, kept.get(_GRADIENT), partial(trial.set_user_attr, _GRADIENT))
    if path and path[-1][1] not in known:
        look_at(path[-1][1])
    whole = {
        "published": [point.to_json() for point in candidates],
        "path": [(loss, point.to_json()) for loss, point in path],
        "known": [(point.to_json(), _attr(found)) for point, found in known.items()],
        "seconds": seconds + time.perf_counter() - begun,
    }
    trial.set_user_attr(_KEPT, whole)
    return losses[start]


def read_beginning(attrs: dict[str, Any]) -> Beginning:
    """What `begin` kept in a trial's user attributes."""
    whole, point = attrs[_KEPT], RopeScaling.from_json
    return Beginning(
        tuple(map(point, whole["published"])),
        tuple((loss, point(text)) for loss, text in whole["path"]),
        {point(text): _evaluation(attr) for text, attr in whole["known"]},
        whole["seconds"],
    )


def _attr(found: Evaluation) -> dict[str, Any]:
    return {"loss": found.loss, "forward_tokens": found.forward_tokens, "blocks": list(found.blocks.items())}


def _evaluation(attr: dict[str, Any]) -> Evaluation:
    return Evaluation(attr["loss"], attr["forward_tokens"], {int(block): value for block, value in attr["blocks"]})
