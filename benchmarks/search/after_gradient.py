"""Is there anything left to gain where the gradient ends? The same tokens for more steps, the evolution and CMA-ES.

    python benchmarks/search/after_gradient.py
    python benchmarks/search/after_gradient.py --model babyllama=PATH --texts FOLDER

Model, documents and figures are those of `retrieval.py`, at a target of 2,048 tokens. After 64 gradient steps under the
joint fitness, with a query scale per head and pair, 64 evaluations' worth of tokens are spent on more gradient steps
(one schedule from the start), on the evolution, or on Optuna's CMA-ES over six knots of log lambda and over log t,
around the gradient's end. `n_hat` reads the gradient's end with every n_hat. Every row has the joint loss of the search
documents and what test documents and needles give. Rows that are there are not measured again.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from retrieval import JOINT, STEPS, RetrievalBench, bench_of, parser_of
from ropewalk.config import SearchConfig, SearchTargetConfig
from ropewalk.files import read_json
from ropewalk.rope import RopeScaling
from ropewalk.search.fitness import Fitness, Part
from ropewalk.search.space import N_HATS
from ropewalk.search.targets import TargetSearch
from ropewalk.search.token_weights import weighted_rows
from run import DOCUMENTS, WINDOW

RESULTS = Path(__file__).with_name("after_gradient.json")
TARGET, EVALUATIONS, KNOTS = 2048, 64, 6
LONGER_STEPS = STEPS + EVALUATIONS * DOCUMENTS // 3
"""A gradient step of one row counts as three passes over it."""


@dataclasses.dataclass
class AfterGradientBench(RetrievalBench):
    """What each way of going on gives."""

    def fitness(self, seed: int) -> Fitness:
        """The joint fitness as the searches have it."""
        rows = torch.from_numpy(self.search.first_tokens(TARGET, documents=DOCUMENTS))
        weighted = weighted_rows(rows, JOINT, tokenizer=self.tokenizer, window=WINDOW, seed=(seed,))
        return Fitness(self.model, (Part(weighted.rows, 1.0, weighted.weights),))

    def best_of(self, seed: int, *, steps: int, evaluations: int = 0) -> RopeScaling:
        """The best of a search with so many gradient steps, and evaluations' worth of trials of the evolution."""
        spent = (DOCUMENTS * 7 + 3 * steps) * TARGET  # six starts and published methods, and the gradient's end
        config = SearchConfig(
            name="hybrid", gradient_steps=steps, gradient_batch_size=1, gradient_learning_rate=0.1,
            trials=100 * evaluations, patience=None, budget_tokens=spent + evaluations * DOCUMENTS * TARGET,
            documents=DOCUMENTS, fitness=JOINT, query_scales="pair",
        )  # fmt: skip
        with TemporaryDirectory() as folder:
            result = TargetSearch(
                lambda: self.model, self.search, config=config, target=SearchTargetConfig(lengths=[TARGET]),
                original_length=WINDOW, seed=seed, state_folder=Path(folder), label=f"{steps} steps, seed {seed}",
                load_tokenizer=lambda: self.tokenizer,
            ).first()[TARGET]  # fmt: skip
        assert result.gradient is not None
        return result.best if evaluations else result.gradient

    def cmaes(self, seed: int, begin: RopeScaling, fitness: Fitness) -> RopeScaling:
        """The best of CMA-ES around ``begin``, over log t and offsets of log lambda at six knots."""
        pairs, names = np.arange(len(begin.factors)), [f"knot_{knot}" for knot in range(KNOTS)]
        places = np.linspace(0, pairs[-1], KNOTS)

        def point(params: dict[str, float]) -> RopeScaling:
            offsets = np.interp(pairs, places, [params[name] for name in names])
            factors = np.maximum.accumulate(np.maximum(np.asarray(begin.factors) * np.exp(offsets), 1.0))
            t = begin.attention_factor * math.exp(params["log_t"])
            return dataclasses.replace(begin, factors=tuple(factors.tolist()), attention_factor=t)

        start = dict.fromkeys([*names, "log_t"], 0.0)
        study = optuna.create_study(sampler=optuna.samplers.CmaEsSampler(x0=start, sigma0=0.03, seed=seed))
        study.enqueue_trial(start)
        study.optimize(
            lambda trial: fitness(point({name: trial.suggest_float(name, -1.0, 1.0) for name in start})),
            n_trials=EVALUATIONS,
        )
        return point(study.best_params)

    def rows(self, done: set[tuple[str, int]], seeds: list[int]) -> Iterator[dict[str, Any]]:
        def row(name: str, seed: int, scaling: RopeScaling, fitness: Fitness) -> dict[str, Any]:
            about = {"model": self.name, "name": name, "seed": seed, "search_loss": fitness(scaling)}
            return {**about, "n_hat": scaling.n_hat, **self.measured(scaling)}

        for seed in seeds:
            if ("n_hat", seed) in done:
                continue
            fitness = self.fitness(seed)
            gradient = self.best_of(seed, steps=STEPS)
            yield row("gradient", seed, gradient, fitness)
            yield row("more gradient steps", seed, self.best_of(seed, steps=LONGER_STEPS), fitness)
            yield row("evolution", seed, self.best_of(seed, steps=STEPS, evaluations=EVALUATIONS), fitness)
            yield row("CMA-ES", seed, self.cmaes(seed, gradient, fitness), fitness)
            n_hats = [n_hat for n_hat in N_HATS if n_hat <= WINDOW]
            losses = {n_hat: fitness(dataclasses.replace(gradient, n_hat=n_hat)) for n_hat in n_hats}
            best = dataclasses.replace(gradient, n_hat=min(losses, key=lambda n_hat: losses[n_hat]))
            yield {**row("n_hat", seed, best, fitness), "losses": {str(n_hat): loss for n_hat, loss in losses.items()}}


def main() -> None:
    parser = parser_of(__doc__, RESULTS)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = read_json(options.results)["rows"] if options.results.is_file() else []
    if not options.table:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        bench = bench_of(AfterGradientBench, parser, options, target=TARGET)
        done = {(row["name"], row["seed"]) for row in rows if row["model"] == bench.name}
        rows = [row for row in rows if row["model"] != bench.name or ("n_hat", row["seed"]) in done]
        for row in bench.rows(done, options.seeds):
            rows.append(row)
            write_results(options.results, rows)
            print({key: value for key, value in row.items() if key != "model"}, flush=True)
    frame = pd.DataFrame(rows).drop(columns=["seed", "losses"])
    print(frame.groupby(["model", "name"], sort=False).mean().to_string(float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
