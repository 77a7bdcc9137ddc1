"""A search as one Optuna study: a warm start if wanted, then the sampler's trials, resumable after a kill.

The warm start is done by one worker and kept with the study, so that it is computed once for any number of workers.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from optuna.exceptions import TrialPruned
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from ropewalk.config import EXTENT, PLACEMENT, SearchConfig
from ropewalk.files import text_hash
from ropewalk.memory_advice import search_advice
from ropewalk.models.memory import within_memory
from ropewalk.progress import Progress
from ropewalk.rope import RopeScaling
from ropewalk.search.distributed import (
    REASON,
    FailedTrial,
    done_by_position,
    in_turn,
    open_study,
    persistently,
    run_schedule,
    storage_of,
)
from ropewalk.search.evolution import ESTIMATE, EvolutionSampler
from ropewalk.search.fitness import NO_LOSS, Evaluation, Fitness
from ropewalk.search.history import History, SearchResult
from ropewalk.search.samplers import SAMPLERS
from ropewalk.search.space import Encoding, FactorEncoding, KnotEncoding, SearchSpace
from ropewalk.search.stopping import TOKENS, Budget, RacePruner, estimated_loss, tokens_of
from ropewalk.search.warm_start import NOT_A_NUMBER, Step, StepState, WarmStart, learn_scaling, warm_start

_SECONDS = "seconds"
"""User attribute of a trial: how long it took."""


@dataclass(frozen=True)
class Search:
    """One search of a space. Every worker, on any machine, makes the same call and gets the same result.

    Args:
        batch: step -> token rows of a gradient step (rows, length), BOS first and EOS last.
        starts: points to begin from beside the published methods; the gradient starts from the best of all.
        name: name of the study in its storage.
        identity: what is searched, beside what this class knows (model and data hash).
        double_length_every: every how many steps ``batch`` gives rows of twice the target; None for none.
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
    double_length_every: int | None = None
    worker: int = 0
    label: str = "search"

    def run(self) -> SearchResult:
        """Search until the schedule is done; what an earlier call or another worker did is not repeated.

        Raises:
            ValueError: no candidate has a loss, the storage holds another study of this name, or the budget does not
                cover what comes before the first trial.
            ConnectionError: the storage stayed away for search.storage_timeout seconds.
        """
        config = self.config
        self.state_folder.mkdir(parents=True, exist_ok=True)
        with storage_of(config, self.state_folder) as storage:
            pruner = RacePruner(p_value=config.race.p_value)
            study = persistently(lambda: open_study(storage, self.name, pruner=pruner, identity=self.record))
            warm = self._warm_start(study, storage) if config.gradient_steps or not config.trials else WarmStart()
            # Trials vary the factors under the query scales that the gradient ended with.
            space = replace(self.space, query_scales=warm.path[-1][1].query_scales) if warm.path else self.space
            encoding = self._encoding(space)
            done = self._trials(study, storage, warm, encoding) if config.trials else []
        return self._result(warm, done, encoding)

    @property
    def record(self) -> dict[str, Any]:
        """What the study searches; a study of the same name with another record is refused."""
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

    def _warm_start(self, study: Study, storage: RDBStorage) -> WarmStart:
        """The published methods and the gradient, by whichever worker comes first."""
        starts = [*map(self.space.nearest, self.starts)] or [self.space.start()]
        candidates = list(dict.fromkeys([*starts, *self.space.published()]))
        steps = self.config.gradient_steps
        reads = len(candidates) + min(steps, 1)
        needed = reads * self.fitness.race_tokens + self._tokens_of(steps)
        self._budget.check(reads=reads, steps=steps, tokens=needed)

        learn = partial(self._learn, spent=len(candidates) * self.fitness.race_tokens)
        work = partial(warm_start, candidates=candidates, starts=starts, read=self._read, learn=learn)
        return in_turn(study, storage, "warm start", work)

    def _read(self, point: RopeScaling, hopeless: Callable[[dict[int, float]], bool] | None = None) -> Evaluation:
        if self.config.race.blocks:
            # A point that is not raced is read in blocks too, since others are compared with it.
            hopeless = hopeless or (lambda blocks: False)
        with within_memory(search_advice(self.config)):
            return self.fitness.evaluate(point, hopeless=hopeless)

    def _learn(
        self, start: RopeScaling, kept: Sequence[StepState], keep: Callable[[list[StepState]], None], *, spent: int
    ) -> list[Step]:
        """The gradient's path from ``start``, after ``spent`` tokens."""
        config = self.config
        if not config.gradient_steps:
            return []
        learning = learn_scaling(
            self.fitness.model,
            self.space,
            self.batch,
            start=start,
            steps=config.gradient_steps,
            learning_rate=config.gradient_learning_rate,
            query_scales=config.query_scales,
            activation_checkpointing=config.activation_checkpointing,
            first=self.fitness.first,
            kept=kept,
            keep=keep,
        )
        advice = f"lower search.gradient_batch_size, found {config.gradient_batch_size}"
        if config.activation_checkpointing == "none":
            advice += ", or set search.activation_checkpointing=full"
        path: list[Step] = []
        with (
            within_memory(f"{advice}, or take model.dtype=bfloat16"),
            Progress(
                total=config.gradient_steps, desc=f"{self.label}, gradient", unit="step", disable=self.worker > 0
            ) as bar,
        ):
            for loss, scaling in learning:
                path.append((loss, scaling))
                shown = {"loss": f"{loss:.4f}", "t": f"{scaling.attention_factor:.3f}"}
                bar.set_postfix({**shown, **self._budget.shown(spent + self._tokens_of(len(path)))}, refresh=False)
                bar.update()
        return path

    def _encoding(self, space: SearchSpace) -> Encoding:
        if SAMPLERS[self.config.sampler].encoding == "knots":
            return KnotEncoding(space, self.config.knots)
        return FactorEncoding(space)

    def _trials(self, study: Study, storage: RDBStorage, warm: WarmStart, encoding: Encoding) -> list[FrozenTrial]:
        """The trial that counts for each position of the schedule."""
        config = self.config
        # Some of the gradient's path, its end first, then the starts.
        last = len(warm.path) - 1
        path_points = [warm.path[int(last * share)][1] for share in (1.0, 0.85, 0.7, 0.5)] if warm.path else []
        first_points = tuple(dict.fromkeys([*path_points, *map(self.space.nearest, self.starts)]))
        study.sampler = SAMPLERS[config.sampler].make(encoding, config, self.seed, first_points)
        spent = self._tokens_of(len(warm.path)) + sum(read.forward_tokens for read in warm.known.values())
        earlier = persistently(lambda: study.get_trials(deepcopy=False))
        with Progress(
            total=config.trials,
            initial=len(done_by_position(earlier)),
            desc=f"{self.label}, {config.sampler}",
            unit="trial",
            disable=self.worker > 0,
        ) as bar:

            def show(done: dict[int, FrozenTrial]) -> None:
                losses = [trial.values[0] for trial in done.values() if trial.state == TrialState.COMPLETE]
                tokens = spent + sum(map(tokens_of, done.values()))
                best = min(losses, default=math.inf)
                bar.set_postfix({"best_loss": f"{best:.4f}", **self._budget.shown(tokens)}, refresh=False)
                bar.update(len(done) - bar.n)

            return run_schedule(
                study,
                storage,
                lambda trial, position: self._evaluate(trial, study, warm, encoding),
                distributions=encoding.distributions(),
                length=config.trials,
                end=partial(self._budget.end, spent),
                on_done=show,
            )

    def _evaluate(self, trial: Trial, study: Study, warm: WarmStart, encoding: Encoding) -> float:
        """Loss in nats of the trial's point; raises TrialPruned if it is stopped early, FailedTrial without a loss."""
        start = time.perf_counter()
        point = encoding.point(trial.params)
        reported: set[int] = set()

        def hopeless(blocks: Mapping[int, float]) -> bool:
            for block in blocks.keys() - reported:
                trial.report(blocks[block], block)
                reported.add(block)
            return trial.should_prune()

        known = warm.known.get(point)
        if known is None:
            evaluation = self._read(point, hopeless if self.config.race.blocks else None)
        else:
            evaluation = replace(known, forward_tokens=0)
            for block, value in known.blocks.items():
                trial.report(value, block)
        trial.set_user_attr(TOKENS, evaluation.forward_tokens)
        trial.set_user_attr(_SECONDS, time.perf_counter() - start)
        if evaluation.stopped:
            trial.set_user_attr(ESTIMATE, estimated_loss(evaluation.blocks, study.best_trial))
            raise TrialPruned
        if evaluation.loss is None:
            raise FailedTrial(NO_LOSS)
        return evaluation.loss

    @property
    def _budget(self) -> Budget:
        return Budget(self.config.budget_tokens, self.config.patience, self.config.min_delta)

    def _tokens_of(self, steps: int) -> int:
        """Tokens of the first ``steps`` gradient steps; a backward pass counts as two more forward passes."""
        doubled = steps // self.double_length_every if self.double_length_every else 0
        return 3 * self.config.gradient_batch_size * self.row_length * (steps + doubled)

    @property
    def row_length(self) -> int:
        """Tokens in a row of a gradient step."""
        return max(part.rows.shape[1] for part in self.fitness.parts)

    def _result(self, warm: WarmStart, done: list[FrozenTrial], encoding: Encoding) -> SearchResult:
        history = History(length=self.row_length, evaluation_tokens=self.fitness.forward_tokens)
        for number, point in enumerate(warm.published):
            history.add_read("published", number, point, warm.known[point])
        for number, (loss, point) in enumerate(warm.path):
            history.add(
                "gradient", number, point, loss=loss, tokens=self._tokens_of(number + 1) - self._tokens_of(number)
            )
        for point in warm.known.keys() - set(warm.published):
            history.add_read("learned", 0, point, warm.known[point])
        candidates = [(read.loss, point) for point, read in warm.known.items() if read.loss is not None]
        generation = EvolutionSampler._get_generation_key()
        for position, trial in enumerate(done):
            point = encoding.point(trial.params)
            trial_loss = trial.values[0] if trial.state == TrialState.COMPLETE else None
            history.add(
                "evolution",
                position,
                point,
                loss=trial_loss,
                tokens=tokens_of(trial),
                state=trial.state.name,
                reason=trial.user_attrs.get(REASON),
                seconds=trial.user_attrs.get(_SECONDS),
                generation=trial.system_attrs.get(generation, 0),
            )
            if trial_loss is not None:
                candidates.append((trial_loss, point))
        if not candidates:
            raise ValueError(NOT_A_NUMBER)
        loss, best = min(candidates, key=lambda candidate: candidate[0])
        gradient = warm.path[-1][1] if warm.path else None
        return SearchResult(
            best=self.fitness.composed(replace(best, method="longrope")),
            loss=loss,
            gradient=self.fitness.composed(gradient) if gradient else None,
            gradient_loss=warm.known[gradient].loss if gradient else None,
            rows=history.rows,
            seconds_of_rows=history.seconds,
            forward_tokens=history.tokens,
            saved_tokens=history.saved,
            seconds=warm.seconds + sum(trial.user_attrs.get(_SECONDS, 0.0) for trial in done),
            record=self.record,
            budget={key: getattr(self.config, key) for key in EXTENT},
        )
