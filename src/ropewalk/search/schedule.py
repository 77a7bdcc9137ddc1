"""A study's schedule: positions 0, 1, 2, …, each worked off once, by one worker or many, here or elsewhere.

Workers know of each other only through the study's storage. A worker's heartbeat is recorded while it reads; one
that fell silent has its trial taken over by another, under the same position.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError

from ropewalk.search.sampler import RETRY_OF, positions

_STORAGE_ERRORS = (StorageInternalError, DBAPIError)
_RETRIES = "retry_history"
"""System attribute in which Optuna's own retry callback keeps the numbers of the trials that a retry stands for."""
REASON = "reason"
"""User attribute of a trial that failed by itself: it is not tried again."""


class FailedTrial(Exception):
    """A candidate that cannot be read, with the reason; its position is done."""


class _NotNeeded(Exception):
    """A trial drawn by one worker while another drew the last one, or did the same position."""


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def give_back(study: Study, trial: FrozenTrial) -> None:
    """Queue ``trial``, whose worker is gone, for whoever comes next under the same position.

    As Optuna's RetryHeartbeatStaleTrialCallback, but the point is drawn again: a worker can die when half of the
    parameters are set, and what the next one draws for the others need not fit them.
    """
    if trial.state == TrialState.RUNNING:
        with suppress(UpdateFinishedTrialError):
            study.tell(trial.number, state=TrialState.FAIL)
    first = trial.system_attrs.get(RETRY_OF, trial.number)
    history = [*trial.system_attrs.get(_RETRIES, []), trial.number]
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            user_attrs=trial.user_attrs,
            system_attrs={RETRY_OF: first, _RETRIES: history},
        )
    )


def is_done(trial: FrozenTrial) -> bool:
    """Whether a trial settles its position: read whole, stopped early, or failed by itself."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (
        trial.state == TrialState.FAIL and REASON in trial.user_attrs
    )


def done_by_position(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that counts for each position, in order: the first that settled it."""
    place = positions(trials)
    found: dict[int, FrozenTrial] = {}
    for trial in sorted(filter(is_done, trials), key=lambda trial: trial.number):
        found.setdefault(place[trial.number], trial)
    return dict(sorted(found.items()))


def work_off(
    study: Study,
    objective: Callable[[Trial, int], float],
    *,
    length: int,
    end: Callable[[Sequence[FrozenTrial]], int | None] = lambda trials: None,
    on_done: Callable[[dict[int, FrozenTrial]], None] = lambda done: None,
    alone: bool = False,
    storage_timeout: float = 0.0,
    poll: float = 0.5,
) -> list[FrozenTrial]:
    """Work at the study until positions 0 … length-1 are done or ``end`` says that fewer are enough.

    Args:
        objective: (trial, position) -> loss; raises FailedTrial where a candidate cannot be read.
        end: of trials in order of position, how many of the first make the whole schedule; None to go on.
        on_done: called with what is done whenever more may be.
        alone: no other worker is at the study, so that what is running there was left by one that was killed.
        storage_timeout: seconds that a storage may go on failing before its error is raised.
        poll: seconds between looks at what other workers do.

    Returns:
        The trial that counts for each position up to the end. It follows from the storage alone, so it is the same
        for every worker, whenever it looks: what others did beyond the end counts for none of them.
    """
    own: list[int] = []

    def numbered(trial: Trial) -> float:
        own.append(trial.number)
        trials = study.get_trials(deepcopy=False)
        position = positions(trials)[trial.number]
        if position >= length or position in done_by_position(trials):
            raise _NotNeeded
        try:
            return objective(trial, position)
        except FailedTrial as failure:
            trial.set_user_attr(REASON, str(failure))
            raise

    def one_trial() -> None:
        """Ask, read and tell; a trial that is left for another reason than its own goes back to the queue."""
        begun = len(own)
        try:
            study.optimize(numbered, n_trials=1, catch=(FailedTrial, _NotNeeded))
        except (*_STORAGE_ERRORS, ConnectionError):
            raise
        except BaseException:
            for trial in study.get_trials(deepcopy=False):
                if trial.number in own[begun:] and not is_done(trial):
                    give_back(study, trial)
            raise

    def step() -> list[FrozenTrial] | None:
        """One trial, or one look at what others do; the whole schedule when it is done."""
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.number in own and trial.state == TrialState.RUNNING:
                give_back(study, trial)  # the storage went away while this worker had it
                return None
        done = {place: trial for place, trial in done_by_position(trials).items() if place < length}
        on_done(done)
        leading = [trial for place, (position, trial) in enumerate(done.items()) if place == position]
        enough = end(leading)
        if enough is not None or len(leading) == length:
            return leading[:enough]
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        unbegun = len(set(positions(trials).values())) < length
        # What is drawn now comes after all that is done, also where a position before is still being read.
        if waiting or (unbegun and end(list(done.values())) is None):
            one_trial()
            return None
        time.sleep(poll)
        with _quiet():
            fail_stale_trials(study)
        _give_back_lost(study, length)
        return None

    if alone:
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            give_back(study, trial)
        _give_back_lost(study, length)
    failing_since: float | None = None
    while True:
        try:
            if (finished := step()) is not None:
                return finished
            failing_since = None
        except UpdateFinishedTrialError:
            continue  # this worker was taken for dead, and another has its trial
        except _STORAGE_ERRORS:
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since >= storage_timeout:
                raise
            time.sleep(poll)


def _give_back_lost(study: Study, length: int) -> None:
    """Queue positions whose trial failed when nobody was left to queue it again."""
    trials = study.get_trials(deepcopy=False)
    place = positions(trials)
    alive = {place[t.number] for t in trials if is_done(t) or t.state in (TrialState.RUNNING, TrialState.WAITING)}
    last = {place[trial.number]: trial for trial in trials}
    for position, trial in last.items():
        if position < length and position not in alive:
            give_back(study, trial)
