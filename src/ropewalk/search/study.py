"""A search as one Optuna study in its own storage: gradient first if wanted, then evolution, resumable after a kill."""

import math
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from ropewalk.config import SearchConfig
from ropewalk.progress import Progress
from ropewalk.rope import RopeScaling
from ropewalk.search.fitness import Fitness, RememberedLosses
from ropewalk.search.gradient import Step, learn_scaling
from ropewalk.search.sampler import EvolutionSampler, distributions, from_params
from ropewalk.search.space import SearchSpace


@dataclass(frozen=True)
class SearchResult:
    best: RopeScaling
    """Composed with any earlier scaling: ready to put into the model."""
    loss: float
    """Nats per token on the search documents."""
    seed: RopeScaling | None
    """What the gradient alone found (composed), to measure what evolution gained over it."""
    seed_loss: float | None
    rows: list[dict[str, Any]]
    """One row per gradient step and trial: phase, length, trial, generation, loss, best, tokens, and the point."""
    forward_tokens: int
    """Tokens read, a backward counted as two more forwards."""


def run_search(
    model: Any,
    *,
    fitness: Fitness,
    batch: Callable[[int], Any],
    space: SearchSpace,
    config: SearchConfig,
    seed: int,
    state_folder: Path,
    starts: tuple[RopeScaling, ...] = (),
    label: str = "search",
) -> SearchResult:
    """Search ``space``; no point is read twice, and what ``state_folder`` holds of an earlier call is not paid again.

    Args:
        starts: points to begin from beside the published methods; the best of all seeds the gradient.

    Raises:
        ValueError: every candidate made the model emit NaN.
    """
    state_folder.mkdir(parents=True, exist_ok=True)
    documents, length = fitness.rows.shape
    log = _Log(length=length)
    known = RememberedLosses(fitness, state_folder / "losses.json")
    candidates = list(dict.fromkeys([*map(space.nearest, starts), *space.published()]))
    for number, candidate in enumerate(candidates):
        log.add("published", number, known(candidate), candidate, documents * length)
    start = min(candidates, key=known)
    found, found_loss = start, known(start)
    if not math.isfinite(found_loss):
        raise ValueError("every candidate made the model emit NaN or infinite losses; check the model and its dtype")
    path = _gradient_phase(model, fitness, batch, space, config, start, state_folder, label, log)
    seeds: tuple[RopeScaling, ...] = tuple(map(space.nearest, starts))
    seed_point, seed_loss = None, None
    if path:
        last = len(path) - 1
        along = [path[int(last * share)][1] for share in (1.0, 0.85, 0.7, 0.5)]
        seeds = (*dict.fromkeys(along), *seeds)
        seed_point = seeds[0]
        if seed_point not in candidates:
            log.paid(documents * length)
        seed_loss = known(seed_point)
        if seed_loss < found_loss:
            found, found_loss = seed_point, seed_loss
    if config.trials:
        study = _evolve(fitness, known, space, config, seed, seeds, state_folder, label)
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        for number, trial in enumerate(finished):
            generation = trial.system_attrs.get(EvolutionSampler._get_generation_key(), 0)
            point = from_params(trial.params, space)
            paid = 0 if point in known else documents * length
            log.add("evolution", number, trial.values[0], point, paid, generation=generation)
        best_trial = min(finished, key=lambda trial: (trial.values[0], trial.number))
        if best_trial.values[0] < found_loss:
            found, found_loss = from_params(best_trial.params, space), best_trial.values[0]
    return SearchResult(
        best=fitness.composed(replace(found, method="longrope")),
        loss=found_loss,
        seed=fitness.composed(seed_point) if seed_point else None,
        seed_loss=seed_loss,
        rows=log.rows,
        forward_tokens=log.tokens,
    )


class _QuickConnection(sqlite3.Connection):
    """Leaves flushing to the system: a trial is some twenty commits, and a killed process loses none of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous = OFF")


class _Log:
    """Rows of the search's history, with the best so far of each phase and the tokens paid so far."""

    def __init__(self, *, length: int) -> None:
        self.length, self.tokens = length, 0
        self.rows: list[dict[str, Any]] = []
        self._best: dict[str, float] = {}

    def paid(self, tokens: int) -> None:
        self.tokens += tokens

    def add(
        self, phase: str, trial: int, loss: float, point: RopeScaling, tokens: int, *, generation: int = -1
    ) -> None:
        self.paid(tokens)
        self._best[phase] = min(loss, self._best.get(phase, math.inf))
        self.rows.append(
            {
                "phase": phase,
                "length": self.length,
                "trial": trial,
                "generation": generation,
                "loss": loss,
                "best": self._best[phase],
                "tokens": self.tokens,
                **{f"lambda_{pair:02d}": factor for pair, factor in enumerate(point.factors)},
                "n_hat": point.n_hat,
                "attention_factor": point.attention_factor,
            }
        )


def _gradient_phase(
    model: Any,
    fitness: Fitness,
    batch: Callable[[int], Any],
    space: SearchSpace,
    config: SearchConfig,
    start: RopeScaling,
    state_folder: Path,
    label: str,
    log: _Log,
) -> list[Step]:
    if not config.gradient_steps:
        return []
    learning = learn_scaling(
        model,
        space,
        batch,
        start=start,
        steps=config.gradient_steps,
        learning_rate=config.gradient_learning_rate,
        state=state_folder / "gradient.pt",
        first=fitness.first,
    )
    path: list[Step] = []
    with Progress(total=config.gradient_steps, desc=f"{label}, gradient", unit="step") as bar:
        for loss, scaling in learning:
            log.add("gradient", len(path), loss, scaling, 3 * config.gradient_rows * log.length)
            path.append((loss, scaling))
            bar.set_postfix(loss=f"{loss:.4f}", t=f"{scaling.attention_factor:.3f}", refresh=False)
            bar.update()
    return path


def _evolve(
    fitness: Fitness,
    known: RememberedLosses,
    space: SearchSpace,
    config: SearchConfig,
    seed: int,
    seeds: tuple[RopeScaling, ...],
    state_folder: Path,
    label: str,
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage(
            f"sqlite:///{(state_folder / 'study.db').resolve()}",
            engine_kwargs={"connect_args": {"factory": _QuickConnection}},
        ),
        study_name="rescale-factors",
        sampler=EvolutionSampler(
            space,
            seed=seed,
            population_size=config.children,
            initial=config.initial,
            parents=config.parents,
            probability=config.mutation_probability,
            seeds=seeds,
        ),
        load_if_exists=True,
    )
    for stale in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # Left by a killed process; its position in the schedule is drawn again, to the same point.
        study.tell(stale.number, state=TrialState.FAIL)
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = min((trial.values[0] for trial in done), default=math.inf)
    with Progress(total=config.trials, initial=len(done), desc=f"{label}, evolution", unit="trial") as bar:
        for _ in range(len(done), config.trials):
            trial = study.ask(distributions(space))
            point = from_params(trial.params, space)
            loss = known(point) if point in known else fitness(point)
            study.tell(trial, loss)
            best = min(best, loss)
            bar.set_postfix(best_loss=f"{best:.4f}", refresh=False)
            bar.update()
    return study
