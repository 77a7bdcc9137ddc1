"""A search as one Optuna study: gradient first if wanted, then the sampler's trials, resumable after a kill.

The published methods and the gradient come before the study, as its beginning: one worker's work, which the others
wait for. It is kept in the storage, so it is paid once however many workers there are.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from optuna.exceptions import TrialPruned
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ropewalk.config import EXTENT, PLACEMENT, SearchConfig
from ropewalk.files import text_hash
from ropewalk.progress import Progress
from ropewalk.rope import RopeScaling
from ropewalk.search.beginning import NOT_A_NUMBER, Beginning, begin, read_beginning
from ropewalk.search.budget import TOKENS, Budget, tokens_of
from ropewalk.search.coding import Coding, FactorCoding, KnotCoding, ask
from ropewalk.search.fitness import NO_LOSS, Evaluation, Fitness
from ropewalk.search.gradient import learn_scaling
from ropewalk.search.history import History, SearchResult
from ropewalk.search.memory import within_memory
from ropewalk.search.race import RacePruner, estimated_loss
from ropewalk.search.sampler import ESTIMATE, EvolutionSampler, PaperSampler, StartTokenSampler
from ropewalk.search.schedule import REASON, FailedTrial, done_by_position, work_off
from ropewalk.search.space import SearchSpace
from ropewalk.search.storage import open_storage, open_study
from ropewalk.search.yardsticks import YARDSTICKS, KnotSampler

_SAMPLERS: dict[str, type[EvolutionSampler]] = {
    "evolution": EvolutionSampler,
    "paper": PaperSampler,
    "start_tokens": StartTokenSampler,
}
_SECONDS = "seconds"
"""User attribute of a trial."""


@dataclass(frozen=True)
class Search:
    """One search of a space: the same call by every worker, here and elsewhere, gives every one the same result.

    Args:
        batch: step -> token rows of a gradient step (rows, length), BOS first and EOS last.
        starts: points to begin from beside the published methods; the best of all seeds the gradient.
        name: of the study in its storage.
        identity: what the search is of, beside what this class knows (model and data hash).
        worker: number of the worker on this machine; only worker 0 shows progress.
        label: what progress bars say.
    """

    fitness: Fitness
    batch: Callable[[int], Any]
    space: SearchSpace
    config: SearchConfig
    seed: int
    state_folder: Path
    starts: tuple[RopeScaling, ...] = ()
    name: str = "rescale-factors"
    identity: dict[str, Any] = field(default_factory=dict)
    worker: int = 0
    label: str = "search"

    def run(self) -> SearchResult:
        """Search until the schedule is done; what an earlier call or another worker did is not paid again.

        Raises:
            ValueError: every candidate made the model emit NaN, the storage holds another study of this name, or the
                budget does not cover what comes before the first trial.
            ConnectionError: the storage stayed away for search.storage_timeout seconds.
        """
        self.state_folder.mkdir(parents=True, exist_ok=True)
        storage = open_storage(
            self.config.storage,
            folder=self.state_folder,
            heartbeat_seconds=self.config.heartbeat_seconds,
            timeout=self.config.storage_timeout,
        )
        try:
            first = self.config.gradient_steps or not self.config.trials
            beginning = self._begin(storage) if first else Beginning()
            done: list[FrozenTrial] = []
            if self.config.trials:
                study = self._open(storage, self.name, self._sampler(self._seeds(beginning)))
                done = self._trials(study, beginning)
            return self._result(beginning, done)
        finally:
            storage.engine.dispose()

    @property
    def record(self) -> dict[str, Any]:
        space, first = self.space, self.fitness.first
        left_out = (*PLACEMENT, *EXTENT, "name", "starts")
        return {
            **self.identity,
            "data_hash": self.fitness.data_hash,
            "protocol": self.fitness.protocol,
            "evaluation_tokens": self.fitness.forward_tokens,
            "on_top_of": None if first is None else text_hash(first.to_json()),
            "space": f"{type(space).__name__} {space.rotary_dim} {space.original_length} {space.target_length} "
            f"{space.upper} {space.step} {space.attention_factors} {space.n_hats}",
            "settings": {key: value for key, value in asdict(self.config).items() if key not in left_out},
            "seed": self.seed,
        }

    def _open(self, storage: RDBStorage, name: str, sampler: BaseSampler) -> Study:
        pruner = RacePruner(p_value=self.config.race.p_value)
        return open_study(storage, name, sampler=sampler, pruner=pruner, identity=self.record)

    def _work_off(self, study: Study, objective: Callable[[Trial, int], float], **more: Any) -> list[FrozenTrial]:
        alone = self.config.storage is None and self.config.workers == 1
        return work_off(study, objective, alone=alone, **more)

    def _begin(self, storage: RDBStorage) -> Beginning:
        """The published methods and the gradient, by whichever worker comes first."""
        starts = [*map(self.space.nearest, self.starts)] or [self.space.start()]
        candidates = list(dict.fromkeys([*starts, *self.space.published()]))
        steps = self.config.gradient_steps
        reads = len(candidates) + min(steps, 1)
        needed = reads * self.fitness.race_tokens + steps * self._step_tokens
        self._budget.check(reads=reads, steps=steps, tokens=needed)

        def work(trial: Trial, position: int) -> float:
            learn = partial(self._gradient, spent=len(candidates) * self.fitness.race_tokens)
            return begin(trial, candidates, starts, read=self._read, learn=learn)

        study = self._open(storage, f"{self.name}, beginning", RandomSampler())
        return read_beginning(self._work_off(study, work, length=1)[0].user_attrs)

    def _read(self, point: RopeScaling, hopeless: Callable[[dict[int, float]], bool] | None = None) -> Evaluation:
        if self.config.race.blocks and hopeless is None:
            # For the blocks that others are compared with.
            return self._read(point, lambda blocks: False)
        with within_memory(
            f"lower search.batch_tokens, found {self.fitness.batch_tokens} (a pass holds one document at least), or "
            f"search.workers, found {self.config.workers}, or take model.dtype=bfloat16"
        ):
            return self.fitness.evaluate(point, hopeless=hopeless)

    def _gradient(
        self, start: RopeScaling, kept: str | None, keep: Callable[[str], None], *, spent: int
    ) -> list[tuple[float, RopeScaling]]:
        if not self.config.gradient_steps:
            return []
        learning = learn_scaling(
            self.fitness.model,
            self.space,
            self.batch,
            start=start,
            steps=self.config.gradient_steps,
            learning_rate=self.config.gradient_learning_rate,
            checkpointing=self.config.gradient_checkpointing,
            first=self.fitness.first,
            kept=kept,
            keep=keep,
        )
        path = []
        rows = f"lower search.gradient_rows, found {self.config.gradient_rows}"
        checkpointing = "" if self.config.gradient_checkpointing else ", or set search.gradient_checkpointing=true"
        with (
            within_memory(f"{rows}{checkpointing}, or take model.dtype=bfloat16"),
            Progress(
                total=self.config.gradient_steps,
                desc=f"{self.label}, gradient",
                unit="step",
                disable=self.worker > 0,
            ) as bar,
        ):
            for loss, scaling in learning:
                path.append((loss, scaling))
                shown = {"loss": f"{loss:.4f}", "t": f"{scaling.attention_factor:.3f}"}
                bar.set_postfix({**shown, **self._budget.shown(spent + len(path) * self._step_tokens)}, refresh=False)
                bar.update()
        return path

    def _seeds(self, beginning: Beginning) -> tuple[RopeScaling, ...]:
        """First points of the sampler: some of the gradient's path, its end first, then the starts."""
        last = len(beginning.path) - 1
        along = [beginning.path[int(last * share)][1] for share in (1.0, 0.85, 0.7, 0.5)] if beginning.path else []
        return tuple(dict.fromkeys([*along, *map(self.space.nearest, self.starts)]))

    @property
    def _coding(self) -> Coding:
        if self.config.sampler in YARDSTICKS:
            return KnotCoding(self.space, self.config.knots)
        return FactorCoding(self.space)

    def _sampler(self, seeds: tuple[RopeScaling, ...]) -> BaseSampler:
        config = self.config
        if config.sampler in YARDSTICKS:
            return KnotSampler(KnotCoding(self.space, config.knots), kind=config.sampler, seed=self.seed)
        return _SAMPLERS[config.sampler](
            self.space,
            seed=self.seed,
            population_size=config.children,
            initial=config.initial,
            parents=config.parents,
            probability=config.mutation_probability,
            seeds=seeds,
        )

    def _trials(self, study: Study, beginning: Beginning) -> list[FrozenTrial]:
        config, coding = self.config, self._coding

        def read(trial: Trial, position: int) -> float:
            begun = time.perf_counter()
            point = coding.point(ask(trial, coding))
            reported: set[int] = set()

            def hopeless(blocks: dict[int, float]) -> bool:
                for block in blocks.keys() - reported:
                    trial.report(blocks[block], block)
                    reported.add(block)
                return trial.should_prune()

            known = beginning.known.get(point)
            if known is None:
                found = self._read(point, hopeless if config.race.blocks else None)
            else:
                found = replace(known, forward_tokens=0)
                for block, value in known.blocks.items():
                    trial.report(value, block)
            trial.set_user_attr(TOKENS, found.forward_tokens)
            trial.set_user_attr(_SECONDS, time.perf_counter() - begun)
            if found.stopped:
                trial.set_user_attr(ESTIMATE, estimated_loss(found.blocks, study.best_trial))
                raise TrialPruned
            if found.loss is None:
                raise FailedTrial(NO_LOSS)
            return found.loss

        spent = self._tokens(beginning)
        with Progress(
            total=config.trials,
            initial=len(done_by_position(study.get_trials(deepcopy=False))),
            desc=f"{self.label}, {config.sampler}",
            unit="trial",
            disable=self.worker > 0,
        ) as bar:

            def show(done: dict[int, FrozenTrial]) -> None:
                best = min((trial.values[0] for trial in _whole(done.values())), default=math.inf)
                tokens = spent + sum(map(tokens_of, done.values()))
                bar.set_postfix({"best_loss": f"{best:.4f}", **self._budget.shown(tokens)}, refresh=False)
                bar.update(len(done) - bar.n)

            return self._work_off(study, read, length=config.trials, end=partial(self._budget.end, spent), on_done=show)

    @property
    def _budget(self) -> Budget:
        return Budget(self.config.budget_tokens, self.config.patience, self.config.least_gain)

    def _tokens(self, beginning: Beginning) -> int:
        return self._step_tokens * len(beginning.path) + beginning.read_tokens

    @property
    def _step_tokens(self) -> int:
        """Of a gradient step; a backward pass counts as two more forward passes."""
        return 3 * self.config.gradient_rows * self.row_length

    @property
    def row_length(self) -> int:
        """Tokens in a row of a gradient step."""
        return max(part.rows.shape[1] for part in self.fitness.parts)

    def _result(self, beginning: Beginning, done: list[FrozenTrial]) -> SearchResult:
        history = History(length=self.row_length, evaluation_tokens=self.fitness.forward_tokens)
        for number, point in enumerate(beginning.published):
            history.add_read("published", number, point, beginning.known[point])
        for number, (loss, point) in enumerate(beginning.path):
            history.add("gradient", number, point, loss=loss, tokens=self._step_tokens)
        for point in beginning.known.keys() - set(beginning.published):
            history.add_read("learned", 0, point, beginning.known[point])
        generation = EvolutionSampler._get_generation_key()
        for position, trial in enumerate(done):
            history.add(
                "evolution",
                position,
                self._coding.point(trial.params),
                loss=trial.values[0] if trial.state == TrialState.COMPLETE else None,
                tokens=tokens_of(trial),
                state=trial.state.name,
                reason=trial.user_attrs.get(REASON),
                seconds=trial.user_attrs.get(_SECONDS),
                generation=trial.system_attrs.get(generation, 0),
            )
        found = [(known.loss, point) for point, known in beginning.known.items() if known.loss is not None]
        found += [(trial.values[0], self._coding.point(trial.params)) for trial in _whole(done)]
        if not found:
            raise ValueError(NOT_A_NUMBER)
        loss, best = min(found, key=lambda entry: entry[0])
        seed = beginning.path[-1][1] if beginning.path else None
        return SearchResult(
            best=self.fitness.composed(replace(best, method="longrope")),
            loss=loss,
            seed=self.fitness.composed(seed) if seed else None,
            seed_loss=beginning.known[seed].loss if seed else None,
            rows=history.rows,
            seconds_of_rows=history.seconds,
            forward_tokens=history.tokens,
            saved_tokens=history.saved,
            seconds=beginning.seconds + sum(trial.user_attrs.get(_SECONDS, 0.0) for trial in done),
            record=self.record,
            budget={key: getattr(self.config, key) for key in EXTENT},
        )


def _whole(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]
