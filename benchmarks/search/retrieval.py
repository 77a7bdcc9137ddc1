"""Reading and retrieving without training: perplexity and passkeys under our factors and under published ones.

    python benchmarks/search/retrieval.py
    python benchmarks/search/retrieval.py --model babyllama=PATH --texts FOLDER

Model, documents and protocol are those of `run.py`: factors are searched on the first eight documents, and everything
is measured on test documents that no search reads. The rows are: every published method, in the variant that reads the
target best and with every temperature of those that have one; the gradient alone judged by perplexity, and jointly,
without query scales, with a scale per head and with one per head and pair, with and without steps at twice the target;
and two controls, scales that are learned inside the window alone, under plain RoPE and under the factors of the search
without scales. Plain RoPE with the scales of a search shows what they do inside the window. All searches take 64
gradient steps of one row.

Perplexity is measured in the window, at half the target, at the target and at twice the target. Passkeys (60 prompts a
length, half of them in each form, wordings that no search uses) are asked of the walker only, since babyllama does not
repeat them inside its window either; for both there is the loss of tokens copied from beyond the window.

Every row is written when it is done, and rows that are there are not measured again. `--table` prints the
means, and the default's search beside the best published method.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pandas as pd
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model import add_options, chosen
from record import write_results
from ropewalk.config import FitnessConfig, SearchConfig, SearchTargetConfig
from ropewalk.corpus.segments import Segments
from ropewalk.evaluate.baselines import Variant, variants
from ropewalk.evaluate.passkey import passkey_accuracy
from ropewalk.evaluate.prompt_sets import Draw
from ropewalk.evaluate.prompts import PASSKEY_FORMS
from ropewalk.files import read_json
from ropewalk.models.base import load_tokenizer
from ropewalk.rope import LengthSwitch, RopeScaling
from ropewalk.rope.methods import baselines
from ropewalk.search.fitness import Fitness, Part
from ropewalk.search.space import SearchSpace
from ropewalk.search.targets import TargetSearch
from ropewalk.search.token_weights import WeightedRows, weighted_rows
from ropewalk.search.warm_start import learn_scaling
from run import DOCUMENTS, ROOT, WINDOW, Bench, text_stores, walker_stores

RESULTS = ROOT / "benchmarks" / "search" / "retrieval.json"
STEPS, TRIALS = 64, 30
PERPLEXITY = FitnessConfig("perplexity")
DEFAULT = FitnessConfig(**yaml.safe_load((ROOT / "conf/search/fitness/joint.yaml").read_text()))
JOINT = dataclasses.replace(DEFAULT, needle_weight=0.2, copied_weight=0.5)
"""Twice the default's weights, at which the rows without a word about weights are measured."""
COPIED = FitnessConfig("copied", text_weight=0, copied_weight=1.0)
SEARCHES: dict[str, tuple[FitnessConfig, str, int | None]] = {
    "perplexity": (PERPLEXITY, "none", None),
    "joint": (JOINT, "none", None),
    "joint, head": (JOINT, "head", None),
    "joint, pair": (JOINT, "pair", None),
    "joint, pair, the default's weights": (DEFAULT, "pair", None),
    "joint, pair, twice the target in every 16th step": (JOINT, "pair", 16),
    "joint, pair, twice the target in every 4th step": (JOINT, "pair", 4),
    "perplexity, pair": (PERPLEXITY, "pair", None),
}
"""Fitness, query scales, and every how many steps one reads twice the target."""


@dataclasses.dataclass
class RetrievalBench(Bench):
    """A model with its documents, and a target."""

    target: int
    searches: tuple[str, ...] = tuple(SEARCHES)
    """Names of the searches that are measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokenizer = load_tokenizer(self.path)

    @property
    def plain(self) -> RopeScaling:
        return RopeScaling((1.0,) * (self.shape.rotary_dim // 2), WINDOW, self.target)

    def published(self, method: str) -> list[Variant]:
        """The variant that reads the target best, and the same factors with every temperature of the method."""
        options = variants(method, self.shape, length=self.target, target=self.target)
        best = min(options, key=lambda option: self.perplexity(option.scaling, self.target))
        return [option for option in options if option.scaling.factors == best.scaling.factors]

    def learned(self, name: str, seed: int) -> tuple[RopeScaling, int]:
        """The gradient's result, and the number of tokens that the search read."""
        fitness, scales, double = SEARCHES[name]
        config = SearchConfig(
            name="gradient", gradient_steps=STEPS, gradient_batch_size=1, gradient_learning_rate=0.1, trials=0,
            documents=DOCUMENTS, fitness=fitness, query_scales=scales, double_length_every=double,
        )  # fmt: skip
        with TemporaryDirectory() as folder:
            search = TargetSearch(
                lambda: self.model, self.search, config=config, target=SearchTargetConfig(lengths=[self.target]),
                original_length=WINDOW, seed=seed, state_folder=Path(folder), label=f"{name}, seed {seed}",
                load_tokenizer=lambda: self.tokenizer,
            )  # fmt: skip
            result = search.first()[self.target]
        assert result.gradient is not None
        return result.gradient, result.forward_tokens

    @cached_property
    def window_scales(self) -> tuple[tuple[float, ...], ...] | None:
        """A scale per head and pair that is learned inside the window, from as many tokens as a search's steps read."""
        rows = self.target // WINDOW
        segments = Segments(self.search, length=WINDOW, batch_size=rows, steps=STEPS, seed=0)
        space = SearchSpace(
            rotary_dim=self.shape.rotary_dim, base=self.shape.base, original_length=WINDOW, target_length=WINDOW,
            upper=1.0001, attention_factors=(1.0, 1.0),
        )  # fmt: skip
        path = learn_scaling(
            self.model, space, lambda step: WeightedRows(segments.step(step).ids),
            start=space.nearest(self.plain), steps=STEPS, learning_rate=0.1, query_scales="pair",
        )  # fmt: skip
        return list(path)[-1][1].query_scales

    def measured(self, scaling: RopeScaling) -> dict[str, Any]:
        target = self.target
        documents = min(DOCUMENTS, len(self.test.long_documents(target - 1)))
        rows = torch.from_numpy(self.test.first_tokens(target, documents=documents))
        copied = weighted_rows(rows, COPIED, tokenizer=None, window=WINDOW, seed=(0,))
        values: dict[str, Any] = {
            "perplexity_in_window": self.perplexity(scaling, WINDOW),
            "perplexity_at_half": self.perplexity(scaling, target // 2),
            "perplexity": self.perplexity(scaling, target),
            "perplexity_at_twice": self.perplexity(scaling, 2 * target),
            "copied_loss": Fitness(self.model, (Part(copied.rows, 1.0, copied.weights),))(scaling),
            "attention_factor": scaling.attention_factor,
            "largest_factor": max(scaling.factors),
            "query_scales": sum(map(len, scaling.query_scales or ())),
        }
        for place, length in (("at_half", target // 2), ("", target)) if self.name == "walker" else ():
            for family, form in PASSKEY_FORMS.items():
                prompts = Draw(family, length, TRIALS, 10, 0).prompts(self.tokenizer, self.test)
                switch = LengthSwitch(((length, scaling),))
                rows_of_form = passkey_accuracy(self.model, self.tokenizer, switch, prompts)
                name = "_".join(filter(None, ("passkeys", form, place)))
                values[name] = sum(row["correct"] for row in rows_of_form) / TRIALS
        return values

    def rows(self, done: set[tuple[str, int]], seeds: list[int]) -> Iterator[dict[str, Any]]:
        """Rows that are not done yet; a search's is named by what it learns, a published one's by its method."""
        begun = time.perf_counter()

        def row(name: str, seed: int, scaling: RopeScaling, tokens: int = 0) -> dict[str, Any]:
            seconds = round(time.perf_counter() - begun, 1)
            evaluations = tokens / (DOCUMENTS * self.target)
            about = {"model": self.name, "target": self.target, "name": name, "seed": seed}
            return {**about, "evaluations_worth": evaluations, "seconds": seconds, **self.measured(scaling)}

        for seed in seeds:
            for name in self.searches:
                if (name, seed) not in done:
                    begun = time.perf_counter()
                    scaling, tokens = self.learned(name, seed)
                    yield row(name, seed, scaling, tokens)
                    if name == "joint, pair":
                        inside = dataclasses.replace(self.plain, query_scales=scaling.query_scales)
                        yield row("plain RoPE, scales of joint, pair", seed, inside)
                    if name == "joint":
                        controlled = dataclasses.replace(scaling, query_scales=self.window_scales)
                        yield row("control: joint, scales of the window", seed, controlled)
        if ("control: plain RoPE, scales of the window", 0) not in done:
            inside = dataclasses.replace(self.plain, query_scales=self.window_scales)
            yield row("control: plain RoPE, scales of the window", 0, inside)
        methods = {name.partition(":")[0] for name, _ in done}
        for method in (name for name in baselines() if name not in methods):
            for variant in self.published(method):
                yield row(f"{method}: {variant.label}", 0, variant.scaling)


def parser_of(description: str | None, results: Path) -> argparse.ArgumentParser:
    """The options of a benchmark with several seeds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(parser)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--table", action="store_true", help="print the means over seeds, and stop")
    return parser


BenchT = TypeVar("BenchT", bound=RetrievalBench)


def bench_of(
    kind: type[BenchT], parser: argparse.ArgumentParser, options: argparse.Namespace, *, target: int
) -> BenchT:
    """The benchmark of the model that the options choose, on one thread."""
    torch.set_num_threads(1)
    name, path, texts = chosen(parser, options)
    stores = text_stores(name, path, Path(texts)) if path else walker_stores()
    return kind(name, path or str(ROOT / "models/walker"), *stores, target)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds."""
    frame = pd.DataFrame(rows).drop(columns=["seed", "seconds"])
    means = frame.groupby(["model", "target", "name"], sort=False).mean()
    return str(means.to_string(float_format=lambda value: f"{value:.3f}"))


CELLS = {
    "half": "perplexity_at_half", "target": "perplexity", "twice": "perplexity_at_twice", "copied": "copied_loss",
    "keys": "passkeys_published", "hidden": "passkeys_varied",
    "keys, half": "passkeys_published_at_half", "hidden, half": "passkeys_varied_at_half",
}  # fmt: skip


def against_best(rows: list[dict[str, Any]], *, search: str = "joint, pair, the default's weights") -> str:
    """For each model and target ``search``, mean and largest deviation of the seeds, over the best published method."""
    frame, lines = pd.DataFrame(rows), []
    for (model, target), of_cell in frame.groupby(["model", "target"], sort=True):
        published = of_cell[of_cell["name"].str.partition(":")[0].isin(baselines())]
        ours = of_cell[of_cell["name"] == search]
        for name, column in CELLS.items():
            if ours.empty or published.empty or ours[column].isna().all():
                continue
            best = published[column].max() if column.startswith("passkeys") else published[column].min()
            mean = ours[column].mean()
            spread = (ours[column] - mean).abs().max()
            lines.append(f"{model:<10}{target:>6}  {name:<14}{mean:>8.3f} +- {spread:.3f}  best published {best:.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = parser_of(__doc__, RESULTS)
    parser.add_argument("--target", type=int, default=2048)
    parser.add_argument("--searches", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = read_json(options.results)["rows"] if options.results.is_file() else []
    if not options.table:
        bench = bench_of(RetrievalBench, parser, options, target=options.target)
        bench.searches = tuple(options.searches)
        done = {
            (row["name"], row["seed"]) for row in rows if (row["model"], row["target"]) == (bench.name, bench.target)
        }
        for row in bench.rows(done, options.seeds):
            rows.append(row)
            write_results(options.results, rows)
            print({key: value for key, value in row.items() if key not in ("model", "target")}, flush=True)
    print(table(rows))
    print(against_best(rows))


if __name__ == "__main__":
    main()
