"""A study's schedule: positions 0, 1, 2, …, each worked off once, by one worker or many, here or elsewhere.

Workers know of each other only through the study's storage. A worker's heartbeat is recorded while it reads; one
that fell silent has its trial taken over by another, under the same position and with the same parameters.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import DBAPIError

from ropewalk.search.sampler import positions

_STORAGE_ERRORS = (StorageInternalError, DBAPIError)
REASON = "reason"
"""User attribute of a trial that failed by itself: it is not tried again."""


class FailedTrial(Exception):
    """A candidate that cannot be read, with the reason; its position is done."""


class _BeyondSchedule(Exception):
    """A trial drawn by one worker while another drew the last one."""


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def give_back(study: Study, trial: FrozenTrial) -> None:
    """Queue ``trial``, whose worker is gone, for whoever comes next: same position, same parameters."""
    if trial.state == TrialState.RUNNING:
        with suppress(UpdateFinishedTrialError):
            study.tell(trial.number, state=TrialState.FAIL)
    with _quiet():
        RetryHeartbeatStaleTrialCallback()(study, trial)


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
    enough: Callable[[dict[int, FrozenTrial]], bool] = lambda done: False,
    on_done: Callable[[dict[int, FrozenTrial]], None] = lambda done: None,
    storage_timeout: float = 0.0,
    poll: float = 0.5,
) -> dict[int, FrozenTrial]:
    """Work at the study until positions 0 … length-1 are done or ``enough`` says so of what is done.

    Args:
        objective: (trial, position) -> loss; raises FailedTrial where a candidate cannot be read.
        on_done: called with what is done whenever more may be.
        storage_timeout: seconds that a storage may be away before its error is raised.
        poll: seconds between looks at what other workers do.

    Returns:
        The trial that counts for each position.
    """
    own: list[int] = []

    def numbered(trial: Trial) -> float:
        own.append(trial.number)
        position = positions(study.get_trials(deepcopy=False))[trial.number]
        if position >= length:
            trial.set_user_attr(REASON, "drawn beyond the end of the schedule")
            raise _BeyondSchedule
        try:
            return objective(trial, position)
        except FailedTrial as failure:
            trial.set_user_attr(REASON, str(failure))
            raise

    def one_trial() -> None:
        """Ask, read and tell; a trial that is left for another reason than its own goes back to the queue."""
        begun = len(own)
        try:
            study.optimize(numbered, n_trials=1, catch=(FailedTrial, _BeyondSchedule))
        except _STORAGE_ERRORS:
            raise
        except BaseException:
            for trial in study.get_trials(deepcopy=False):
                if trial.number in own[begun:] and not is_done(trial):
                    give_back(study, trial)
            raise

    def step() -> bool:
        """Whether all is done."""
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.number in own and trial.state == TrialState.RUNNING:
                give_back(study, trial)  # the storage went away while this worker had it
                return False
        done = {place: trial for place, trial in done_by_position(trials).items() if place < length}
        on_done(done)
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        stop = enough(done)
        if len(done) >= length or (stop and not running):
            return True
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        started = len(set(positions(trials).values()))
        if not stop and (waiting or started < length):
            one_trial()
            return False
        time.sleep(poll)
        with _quiet():
            fail_stale_trials(study)
        if not stop:
            _give_back_lost(study)
        return False

    away_since: float | None = None
    while True:
        try:
            if step():
                return {
                    place: trial
                    for place, trial in done_by_position(study.get_trials(deepcopy=False)).items()
                    if place < length
                }
            away_since = None
        except UpdateFinishedTrialError:
            continue  # this worker was taken for dead, and another has done its trial
        except _STORAGE_ERRORS as error:
            now = time.monotonic()
            away_since = now if away_since is None else away_since
            if now - away_since >= storage_timeout:
                if storage_timeout:
                    raise ConnectionError(
                        f"search.storage has been away for {storage_timeout:.0f} s ({_first_line(error)}); nothing is "
                        "lost: start it and run the same command again"
                    ) from error
                raise
            time.sleep(min(poll * 4, storage_timeout))


def _give_back_lost(study: Study) -> None:
    """Queue positions whose trial failed when nobody was left to queue it again."""
    trials = study.get_trials(deepcopy=False)
    place = positions(trials)
    alive = {place[t.number] for t in trials if is_done(t) or t.state in (TrialState.RUNNING, TrialState.WAITING)}
    for number in {place[t.number]: t.number for t in trials if place[t.number] not in alive}.values():
        give_back(study, next(trial for trial in trials if trial.number == number))


def fail_left_running(study: Study) -> None:
    """Queue every running trial again; only for a study that no other process works at."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        give_back(study, trial)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
