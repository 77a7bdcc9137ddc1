"""A study's schedule: positions 0, 1, 2, …, each settled once, by one worker or many, here or elsewhere.

Workers communicate only through the study's storage. If the heartbeat of a worker stops, another one takes over its
trial, under the same position. A worker that is alone at the study takes it over at once.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ropewalk.search.distributed.interrupts import INTERRUPTS
from ropewalk.search.distributed.locks import locked
from ropewalk.search.distributed.storage import persistently
from ropewalk.search.distributed.trials import (
    REASON,
    done_by_position,
    is_done,
    lost_by_position,
    positions,
    quiet,
    requeue,
)

_LOST_SECONDS = 3.0
"""Longer than a worker takes from failing a trial to queueing it again."""


class FailedTrial(Exception):
    """Raised where a candidate cannot be read, with the reason; its position is settled."""


def run_schedule(
    study: Study,
    storage: RDBStorage,
    objective: Callable[[Trial, int], float],
    *,
    length: int,
    distributions: Mapping[str, BaseDistribution] | None = None,
    end: Callable[[Sequence[FrozenTrial]], int | None] = lambda trials: None,
    on_done: Callable[[dict[int, FrozenTrial]], None] = lambda done: None,
    poll: float = 0.5,
) -> list[FrozenTrial]:
    """Work at the study until positions 0 … length-1 are settled or ``end`` says that fewer are enough.

    Args:
        objective: (trial, position) -> loss; raises FailedTrial where a candidate cannot be read.
        distributions: the parameters of a trial, drawn before the objective is called.
        end: how many of the first trials, given in order of position, make the whole schedule; None to carry on.
        on_done: called with the settled positions whenever there may be more of them.
        poll: seconds between checks of the other workers' progress.

    Returns:
        The trial that counts for each position up to the end. It follows from the storage alone, so it is the same
        for every worker at any time; trials beyond the end count for none of them.
    """
    missing_since: dict[int, float] = {}

    def step() -> list[FrozenTrial] | None:
        """Run a trial, or check on the other workers; return the whole schedule when it is done."""
        trials = study.get_trials(deepcopy=False)
        done = {position: trial for position, trial in done_by_position(trials).items() if position < length}
        on_done(done)
        leading = [trial for count, (position, trial) in enumerate(done.items()) if count == position]
        enough = end(leading)
        if enough is not None or len(leading) == length:
            return leading[:enough]
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        has_free_position = len(set(positions(trials).values())) < length
        # A trial that is drawn now comes after all that are done, even if an earlier one is still being read.
        if waiting or (has_free_position and end(list(done.values())) is None):
            _run_trial(study, objective, length, dict(distributions or {}))
            return None
        time.sleep(poll)
        with quiet():
            fail_stale_trials(study)
        lost, now = lost_by_position(study.get_trials(deepcopy=False), length), time.monotonic()
        for position in missing_since.keys() - lost.keys():
            del missing_since[position]
        for position, trial in lost.items():
            if now - missing_since.setdefault(position, now) > _LOST_SECONDS:
                requeue(study, trial)
        return None

    def take_over() -> None:
        """Queue the trials of dead workers again, if no other worker is at the study."""
        with locked(storage, study.study_name, wait=False) as is_alone:
            if is_alone:
                trials = study.get_trials(deepcopy=False)
                running = [trial for trial in trials if trial.state == TrialState.RUNNING]
                for trial in [*running, *lost_by_position(trials, length).values()]:
                    requeue(study, trial)

    def work() -> list[FrozenTrial]:
        """Run all steps of this worker; after an outage, interrupted trials are queued again before the next draw."""
        persistently(take_over)
        with locked(storage, study.study_name, shared=True) as check:
            assert check is not None
            while (schedule := step()) is None:
                INTERRUPTS.check()
                check()
        return schedule

    with INTERRUPTS.kept(), INTERRUPTS.held():
        return persistently(work)


def _run_trial(
    study: Study, objective: Callable[[Trial, int], float], length: int, distributions: dict[str, BaseDistribution]
) -> None:
    """Ask, read and tell; a trial that is interrupted, rather than failing by itself, goes back to the queue.

    `Study.optimize` hides an error of the storage behind one of its own, and leaves a trial behind when interrupted.
    """
    with quiet():
        fail_stale_trials(study)
        trial = study.ask(distributions)
    trials = study.get_trials(deepcopy=False)
    position_of = positions(trials)
    position = position_of[trial.number]
    others_at_position = [
        other for other in trials if position_of[other.number] == position and other.number != trial.number
    ]
    if position >= length or any(is_done(other) or other.state == TrialState.RUNNING for other in others_at_position):
        # Another worker drew the last position meanwhile, or has the same one.
        study.tell(trial, state=TrialState.FAIL)
        return
    outcome: dict[str, Any]
    try:
        with get_heartbeat_thread(trial._trial_id, study._storage), INTERRUPTS.allowed():
            outcome = {"values": objective(trial, position)}
    except TrialPruned:
        outcome = {"state": TrialState.PRUNED}
    except FailedTrial as failure:
        persistently(partial(trial.set_user_attr, REASON, str(failure)))
        outcome = {"state": TrialState.FAIL}
    except UpdateFinishedTrialError:
        return  # this worker was silent for so long that another has its trial
    except ConnectionError:
        raise
    except BaseException as error:
        with suppress(ConnectionError):
            persistently(partial(_give_back, study, trial.number))
        if INTERRUPTS.caught and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    with suppress(UpdateFinishedTrialError):
        persistently(partial(study.tell, trial, **outcome, skip_if_finished=True))


def _give_back(study: Study, number: int) -> None:
    trial = study.get_trials(deepcopy=False)[number]
    if trial.state == TrialState.RUNNING:
        requeue(study, trial)
