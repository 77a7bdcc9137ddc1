"""A study's schedule: positions 0, 1, 2, …, each worked off once, by one worker or many, here or elsewhere.

Workers know of each other only through the study's storage. A worker's heartbeat is recorded while it reads; one
that fell silent has its trial taken over by another, under the same position. One that comes when all others have
ended on its own machine need not wait for that.
"""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from types import FrameType

from optuna.exceptions import ExperimentalWarning, TrialPruned, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.storages._heartbeat import HeartbeatThread
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from ropewalk.search.sampler import RETRY_OF, positions
from ropewalk.search.workers import WorkerProcess

_RETRIES = "retry_history"
"""System attribute in which Optuna's own retry callback keeps the numbers of the trials that a retry stands for."""
_LOST_SECONDS = 3.0
"""Longer than a worker takes from failing a trial to queueing it again."""
REASON = "reason"
"""User attribute of a trial that failed by itself: it is not tried again."""
_WORKER = "worker "
"""Beginning of the study attribute in which a worker's process is kept."""
_BEATING = {HeartbeatThread.__enter__.__code__, HeartbeatThread.__exit__.__code__}
"""Left halfway, these leave a thread behind that nothing ends, nor the process with it."""


class FailedTrial(Exception):
    """A candidate that cannot be read, with the reason; its position is done."""


class _NotNeeded(Exception):
    """A trial drawn by one worker while another drew the last one, or has the same position."""


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Every Ctrl-C while the body runs, also one whose KeyboardInterrupt is lost.

    Python drops an exception that falls into a weak reference's callback, of which the storage's objects have many,
    and amid Optuna's own clean-up another error takes its place. One that comes while a heartbeat's thread is started
    or ended is not raised there at all.
    """
    caught: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        outer = frame
        while outer is not None and outer.f_code not in _BEATING:
            outer = outer.f_back
        if outer is None:
            before(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


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


def register(study: Study, worker: WorkerProcess) -> None:
    """Keep with the study that ``worker`` is at it."""
    study.set_user_attr(f"{_WORKER}{worker.machine} {worker.pid} {worker.started}", asdict(worker))


def _others_have_ended(study: Study) -> bool:
    own = WorkerProcess.own()
    workers = [WorkerProcess(**value) for key, value in study.user_attrs.items() if key.startswith(_WORKER)]
    return all(worker.has_ended for worker in workers if worker != own)


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
    poll: float = 0.5,
) -> list[FrozenTrial]:
    """Work at the study until positions 0 … length-1 are done or ``end`` says that fewer are enough.

    Args:
        objective: (trial, position) -> loss; raises FailedTrial where a candidate cannot be read.
        end: of trials in order of position, how many of the first make the whole schedule; None to go on.
        on_done: called with what is done whenever more may be.
        alone: no other worker can be at the study, so that what is running there was left by one that was killed.
        poll: seconds between looks at what other workers do.

    Returns:
        The trial that counts for each position up to the end. It follows from the storage alone, so it is the same
        for every worker, whenever it looks: what others did beyond the end counts for none of them.
    """
    own: list[int] = []
    left: list[BaseException] = []

    def numbered(trial: Trial) -> float:
        own.append(trial.number)
        if caught:
            raise KeyboardInterrupt
        trials = study.get_trials(deepcopy=False)
        place = positions(trials)
        position = place[trial.number]
        same = [one for one in trials if place[one.number] == position and one.number != trial.number]
        if position >= length or any(is_done(one) or one.state == TrialState.RUNNING for one in same):
            raise _NotNeeded
        try:
            return objective(trial, position)
        except FailedTrial as failure:
            trial.set_user_attr(REASON, str(failure))
            raise
        except TrialPruned:
            raise
        except BaseException as error:
            left.append(error)
            raise

    def give_own_back() -> None:
        for trial in study.get_trials(deepcopy=False):
            if trial.number in own and not is_done(trial):
                give_back(study, trial)

    def one_trial() -> None:
        """Ask, read and tell; a trial that is left for another reason than its own goes back to the queue."""
        own.clear()
        left.clear()
        try:
            study.optimize(numbered, n_trials=1, catch=(FailedTrial, _NotNeeded))
            return
        except ConnectionError:
            raise
        except BaseException as error:
            if caught or isinstance(error, KeyboardInterrupt):
                with suppress(ConnectionError):
                    give_own_back()
                raise KeyboardInterrupt from None
            reason = left[-1] if left else None
            states = [trial.state for trial in study.get_trials(deepcopy=False) if trial.number in own]
            if isinstance(reason, UpdateFinishedTrialError) or (reason is None and states and states[-1].is_finished()):
                return  # this worker was silent for so long that another has its trial
            give_own_back()
            if isinstance(error, AssertionError) and error.__context__:
                # Where the storage fails in the end, Optuna hides its error behind one of its own.
                raise error.__context__ from None
            raise

    def step() -> list[FrozenTrial] | None:
        """One trial, or one look at what others do; the whole schedule when it is done."""
        trials = study.get_trials(deepcopy=False)
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
        lost, now = _lost(study, length), time.monotonic()
        for position in missed.keys() - lost.keys():
            del missed[position]
        for position, trial in lost.items():
            if now - missed.setdefault(position, now) > _LOST_SECONDS:
                give_back(study, trial)
        return None

    missed: dict[int, float] = {}
    register(study, WorkerProcess.own())
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    # Asked after that: whoever has one of these trials is known by now.
    if alone or _others_have_ended(study):
        for trial in [*running, *_lost(study, length).values()]:
            give_back(study, trial)
    with _interrupts() as caught:
        while (finished := step()) is None:
            if caught:
                raise KeyboardInterrupt
    return finished


def _lost(study: Study, length: int) -> dict[int, FrozenTrial]:
    """Positions whose trial failed when nobody was left to queue it again, with that trial."""
    trials = study.get_trials(deepcopy=False)
    place = positions(trials)
    alive = {place[t.number] for t in trials if is_done(t) or t.state in (TrialState.RUNNING, TrialState.WAITING)}
    last = {place[trial.number]: trial for trial in trials}
    return {position: trial for position, trial in last.items() if position < length and position not in alive}
