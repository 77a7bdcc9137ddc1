"""A study's trials by their position in its schedule, which a retry shares with the trial that it stands for."""

import copy
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

RETRY_OF = "failed_trial"
"""System attribute in which Optuna's retry callback keeps the number of the first trial."""
_RETRIES = "retry_history"
"""System attribute in which the callback keeps the numbers of all trials that a retry stands for."""
REASON = "reason"
"""User attribute with the reason why a trial failed by itself; such a trial is not tried again."""


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Optuna's warnings that its heartbeat is experimental and not made for `Study.ask`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        yield


with quiet():
    _retry = RetryHeartbeatStaleTrialCallback()


def positions(trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Position of each trial number: the count of trials before it that are no retries; needs all trials of a study."""
    firsts = sorted(trial.number for trial in trials if RETRY_OF not in trial.system_attrs)
    return {trial.number: bisect_left(firsts, trial.system_attrs.get(RETRY_OF, trial.number)) for trial in trials}


def is_done(trial: FrozenTrial) -> bool:
    """Whether a trial settles its position: read whole, stopped early, or failed by itself."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (
        trial.state == TrialState.FAIL and REASON in trial.user_attrs
    )


def done_by_position(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that counts for each position, in order of position: the first that settled it."""
    position_of = positions(trials)
    done: dict[int, FrozenTrial] = {}
    for trial in sorted(filter(is_done, trials), key=lambda trial: trial.number):
        done.setdefault(position_of[trial.number], trial)
    return dict(sorted(done.items()))


def lost_by_position(trials: Sequence[FrozenTrial], length: int) -> dict[int, FrozenTrial]:
    """Positions below ``length`` whose last trial failed when nobody was left to queue it again, with that trial."""
    position_of = positions(trials)
    alive = {
        position_of[trial.number]
        for trial in trials
        if is_done(trial) or trial.state in (TrialState.RUNNING, TrialState.WAITING)
    }
    last = {position_of[trial.number]: trial for trial in trials}
    return {position: trial for position, trial in last.items() if position < length and position not in alive}


def requeue(study: Study, trial: FrozenTrial) -> None:
    """Queue ``trial``, whose worker is gone, again under the same position, for the next worker.

    Unlike with Optuna's retry callback, its point is drawn again: a worker can die when half of the parameters are set,
    and the others, drawn by the next worker, need not fit them.
    """
    if trial.state == TrialState.RUNNING:
        with suppress(UpdateFinishedTrialError):
            study.tell(trial.number, state=TrialState.FAIL)
    redrawn = copy.deepcopy(trial)
    redrawn.params, redrawn.distributions = {}, {}
    redrawn.system_attrs = {key: value for key, value in redrawn.system_attrs.items() if key in (RETRY_OF, _RETRIES)}
    _retry(study, redrawn)
