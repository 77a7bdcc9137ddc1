"""How far a search may go: in tokens that are read, and in trials without a gain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

TOKENS = "forward_tokens"
"""User attribute of a trial: what it read."""


def tokens_of(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(TOKENS, 0))


@dataclass(frozen=True)
class Budget:
    """Without ``tokens`` and ``patience``, a search goes on to its last trial."""

    tokens: int | None
    patience: int | None
    """Trials without a gain, after which a search ends."""
    least_gain: float
    """In nats."""

    def check(self, *, reads: int, steps: int, tokens: int) -> None:
        """Whether it covers the ``tokens`` of what comes before the first trial.

        Raises:
            ValueError: it does not.
        """
        if self.tokens is not None and self.tokens < tokens:
            raise ValueError(
                f"search.budget_tokens must cover what comes before the first trial ({reads} points that are read "
                f"whole and {steps} gradient steps), {tokens:,} tokens, found {self.tokens:,}; raise it or lower "
                "search.gradient_steps"
            )

    def end(self, spent: int, trials: Sequence[FrozenTrial]) -> int | None:
        """How many of the first ``trials`` are enough, with ``spent`` tokens before them; None where all are needed."""
        best, last_gain = math.inf, 0
        if self._is_used_up(spent):
            return 0
        for count, trial in enumerate(trials, start=1):
            spent += tokens_of(trial)
            if trial.state == TrialState.COMPLETE and trial.values[0] < best - self.least_gain:
                best, last_gain = trial.values[0], count
            if self._is_used_up(spent) or (self.patience is not None and count - last_gain >= self.patience):
                return count
        return None

    def _is_used_up(self, spent: int) -> bool:
        return self.tokens is not None and spent >= self.tokens

    def shown(self, spent: int) -> dict[str, str]:
        """For a progress bar."""
        left = {} if self.tokens is None else {"left": f"{max(self.tokens - spent, 0):,}"}
        return {"tokens": f"{spent:,}", **left}
