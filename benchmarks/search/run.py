"""What a search costs and gives (`make bench-search`): test perplexity against tokens spent, for every choice.

The walker lies in the repository, and its documents are Python's standard library. Any other model comes with a folder
of texts:

    python benchmarks/search/run.py --model babyllama=PATH --texts FOLDER

or ROPEWALK_BENCH_MODEL=babyllama=PATH and ROPEWALK_BENCH_TEXTS=FOLDER for `make bench-search`. Protocol with texts, in
name order: white space collapsed to single spaces; characters 200,000 to 240,000 of each; BOS and the first
target - 1 tokens; one pass, mean over all tokens. The first 8 documents are searched on, the others are the test.
An evaluation is 8 documents of the target length.

Every row is written when it is done, and rows that are there are not measured again: an interrupted benchmark resumes.
`--choices`, `--targets`, `--seeds` and `--groups` choose rows; `--plan` prints what is left and how long it takes.
Groups: closed (published methods), equal (all choices at 70 evaluations), ten (evolution and cmaes at 700), paper
(1,344 evaluations), racing (evolution: 300 trials without, and with one what 150 of them cost), scaling (1 and 2
workers), fitness (the walker's hybrid by needles and by a mix of lengths). When all rows are there that were asked for,
`--plot FILE` draws test perplexity against tokens spent.
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from curves import figure, of_search
from model import add_options, chosen
from record import write_results
from ropewalk.composition import checked, register
from ropewalk.config import CorpusConfig, SearchConfig, SearchTargetConfig
from ropewalk.corpus.documents import Document
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.sources import find_shards
from ropewalk.corpus.store import TokenStore, write_store
from ropewalk.evaluate.baselines import variants
from ropewalk.evaluate.passkey import passkey_accuracy, passkey_prompts
from ropewalk.evaluate.perplexity import DocumentSet, perplexities
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.files import read_json
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.report.style import save
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape, rotary_shape
from ropewalk.rope.methods import baselines
from ropewalk.search.targets import TargetSearch

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "search" / "results.json"
WORK = ROOT / "work" / "bench-search"
WINDOW, DOCUMENTS = 256, 8
TARGETS = (512, 1024, 2048, 4096)
CHOICES = ("hybrid", "evolution", "gradient", "longrope2", "cmaes", "tpe", "random", "paper")
EQUAL, TEN_TIMES, PAPER = 70, 700, 1344
"""Evaluations."""
RACING_TRIALS, SCALING_TRIALS = 300, 100
FROM, TO = 200_000, 240_000
"""Characters of each text."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A row to be measured; what is not the case's own is the choice's."""

    group: str
    model: str
    choice: str
    target: int
    seed: int
    evaluations: int | None = None
    trials: int | None = None
    race: bool | None = None
    workers: int = 1
    fitness: str | None = None

    @property
    def key(self) -> str:
        return " ".join(f"{name}={value}" for name, value in dataclasses.asdict(self).items() if value is not None)

    @property
    def evaluations_at_most(self) -> int:
        return self.evaluations or self.trials or 0


def cases(model: str) -> Iterator[Case]:
    """Cheap and telling ones first."""
    yield from (Case("closed", model, name, target, 0) for target in TARGETS for name in baselines())
    for target in (2048, *(t for t in TARGETS if t != 2048)):
        yield from (Case("equal", model, name, target, seed, EQUAL) for seed in range(3) for name in CHOICES)
    for seed in range(3):
        yield from (Case("ten", model, name, 2048, seed, TEN_TIMES) for name in ("evolution", "cmaes"))
        yield Case("racing", model, "evolution", 2048, seed, RACING_TRIALS // 2, race=True)
        yield Case("racing", model, "evolution", 2048, seed, trials=RACING_TRIALS, race=False)
    for workers in (1, 2):
        yield Case("scaling", model, "evolution", 2048, 0, trials=SCALING_TRIALS, race=False, workers=workers)
    if model == "walker":  # whose passkeys can be asked for
        yield from (
            Case("fitness", model, "hybrid", 2048, seed, EQUAL, fitness=name)
            for seed in range(3)
            for name in ("needles", "mix")
        )
    yield Case("paper", model, "paper", 2048, 0, PAPER)


@dataclasses.dataclass
class Bench:
    """A model with its documents."""

    name: str
    path: str
    search: TokenStore
    test: TokenStore

    def __post_init__(self) -> None:
        self.model = load_model(self.path)
        self.shape: RotaryShape = dataclasses.replace(rotary_shape(self.model), original_length=WINDOW)

    def row(self, case: Case) -> dict[str, Any]:
        found: dict[str, Any]
        if case.group == "closed":
            # The best of each method's variants, as a baseline's best case.
            options = variants(case.choice, self.shape, length=case.target, target=case.target)
            best = min(options, key=lambda option: self.perplexity(option.scaling, case.target)).scaling
            found = {"forward_tokens": 0, "seconds": 0.0}
        else:
            best, found = self.searched(case)
        return {
            **dataclasses.asdict(case),
            "key": case.key,
            "test_perplexity": self.perplexity(best, case.target),
            **self.elsewhere(best, case.target),
            **found,
            "n_hat": best.n_hat,
            "attention_factor": best.attention_factor,
        }

    def searched(self, case: Case) -> tuple[RopeScaling, dict[str, Any]]:
        state = WORK / self.name / case.key
        fresh, begun = not state.exists(), time.perf_counter()
        results = TargetSearch(
            partial(load_model, self.path),
            self.search,
            config=config_of(case),
            target=SearchTargetConfig(lengths=[case.target]),
            original_length=WINDOW,
            seed=case.seed,
            state_folder=state,
            load_tokenizer=partial(load_tokenizer, self.path),
            label=case.key,
        ).first()
        # Where an earlier run was interrupted, what the trials themselves took.
        seconds = time.perf_counter() - begun if fresh else results[case.target].seconds
        result = results[case.target]
        trials = [row for row in result.rows if row["phase"] == "evolution"]
        evaluation = DOCUMENTS * case.target
        curve = [
            (tokens / evaluation, self.perplexity(point, case.target))
            for tokens, point in of_search(result, window=WINDOW)
        ]
        return result.best, {
            "forward_tokens": result.forward_tokens,
            "evaluations_worth": result.forward_tokens / evaluation,
            "curve": curve,
            "saved_tokens": result.saved_tokens,
            "trials_done": len(trials),
            "stopped_early": sum(row["state"] == "PRUNED" for row in trials),
            "search_perplexity": math.exp(result.loss),
            "seconds": round(seconds, 1),
        }

    def perplexity(self, scaling: RopeScaling, length: int) -> float:
        documents = DocumentSet.of("test", self.test, length=length, documents=None)
        return perplexities(self.model, scaling, documents, [length])[length]

    def elsewhere(self, scaling: RopeScaling, target: int) -> dict[str, float]:
        """At half and twice the target, and passkey at the target; only where it can be measured."""
        found = {"test_perplexity_at_half": self.perplexity(scaling, target // 2)}
        if len(self.test.long_documents(2 * target - 1)) >= DOCUMENTS:
            found["test_perplexity_at_twice"] = self.perplexity(scaling, 2 * target)
        if self.name == "walker":
            tokenizer = load_tokenizer(self.path)
            prompts = passkey_prompts(tokenizer, length=target, depths=10, trials=50, seed=0)
            rows = passkey_accuracy(self.model, tokenizer, LengthSwitch(((target, scaling),)), prompts)
            found["passkey_accuracy"] = ResultTable.from_rows(rows).accuracy() or 0.0
        return found


def config_of(case: Case) -> SearchConfig:
    """The choice as it is, on the same documents and fitness as all others."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = checked(
            compose(
                "config", [f"search={case.choice}", f"search/fitness={case.fitness or 'perplexity'}", f"output={WORK}"]
            )
        ).search
    config.documents, config.workers = DOCUMENTS, case.workers
    if case.evaluations is not None:
        # No trial is begun once it is spent, so that one evaluation is kept back.
        config.budget_tokens = (case.evaluations - 1) * DOCUMENTS * case.target
        config.patience = None
        if config.sampler != "start_tokens":  # which ends when every n_hat is tried
            config.trials = 10 * PAPER
    if case.trials is not None:
        config.trials, config.patience = case.trials, None
    if case.race is False:
        config.race.blocks = 0
    return config


def walker_stores() -> tuple[TokenStore, TokenStore]:
    folder = WORK / "walker-tokens"
    if not (folder / "card.json").is_file():
        values: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/corpus/stdlib.yaml"))
        corpus, tokenizer = (
            CorpusConfig(**values, min_long_documents=8, long_tokens=16_384),
            load_tokenizer(str(ROOT / "models/walker")),
        )
        shards = find_shards(corpus, folder=WORK, downloads=WORK)
        prepare_shards(shards, config=corpus, tokenizer=tokenizer, state=WORK / "walker-prepare", folder=folder)
    return TokenStore(folder / "search"), TokenStore(folder / "test")


def text_stores(name: str, path: str, texts: Path) -> tuple[TokenStore, TokenStore]:
    files = sorted(texts.glob("*.txt"))
    if len(files) <= DOCUMENTS:
        raise ValueError(f"--texts {texts} must hold more than {DOCUMENTS} .txt files, found {len(files)}")
    tokenizer: Any = load_tokenizer(path)
    stores = []
    for part, own in (("search", files[:DOCUMENTS]), ("test", files[DOCUMENTS:])):
        folder = WORK / f"{name}-tokens" / part
        if not (folder / "store.json").is_file():
            documents = []
            for file in own:
                text = " ".join(file.read_text(encoding="utf-8").split())[FROM:TO]
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                documents.append((Document(file.name, "text", text, file.name), ids))
            bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
            write_store(folder, documents, bos=bos, eos=eos, vocab_size=len(tokenizer))
        stores.append(TokenStore(folder))
    return stores[0], stores[1]


def hours_left(bench: Bench, left: list[Case], rows: list[dict[str, Any]]) -> float:
    """By what a token took in rows of this model at this target, else in one evaluation now."""
    pace: dict[int, float] = {}
    for target in {case.target for case in left if case.evaluations_at_most}:
        own = [row for row in rows if (row["model"], row["target"]) == (bench.name, target) and row["forward_tokens"]]
        if own:
            pace[target] = sum(row["seconds"] for row in own) / sum(row["forward_tokens"] for row in own)
        else:
            begun = time.perf_counter()
            bench.perplexity(RopeScaling((1.0,) * (bench.shape.rotary_dim // 2), WINDOW, target), target)
            documents = len(bench.test.long_documents(target - 1))
            pace[target] = (time.perf_counter() - begun) / (documents * target)
    seconds = (
        case.evaluations_at_most * DOCUMENTS * case.target * pace.get(case.target, 0) / case.workers for case in left
    )
    return sum(seconds) / 3600


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(parser)
    parser.add_argument("--choices", nargs="*", help=f"{' '.join((*baselines(), *CHOICES))}; all by default")
    parser.add_argument("--groups", nargs="*", help="closed equal ten racing scaling paper; all by default")
    parser.add_argument("--targets", nargs="*", type=int, default=list(TARGETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, help="for all rows that have a budget, in place of their own")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, help="PNG to draw of the rows at --targets, one panel each")
    parser.add_argument("--plan", action="store_true", help="print what is left and how long it takes, and stop")
    options = parser.parse_args()

    torch.set_num_threads(1)
    name, path, texts = chosen(parser, options)
    if path:
        bench = Bench(name, path, *text_stores(name, path, Path(texts)))
    else:
        bench = Bench(name, str(ROOT / "models/walker"), *walker_stores())
    rows: list[dict[str, Any]] = read_json(options.results)["rows"] if options.results.is_file() else []
    wanted = [
        dataclasses.replace(case, evaluations=options.evaluations) if options.evaluations and case.evaluations else case
        for case in cases(name)
        if case.target in options.targets
        and case.seed in options.seeds
        and (not options.choices or case.choice in options.choices)
        and (not options.groups or case.group in options.groups)
    ]
    done = {row["key"] for row in rows}
    left = [case for case in wanted if case.key not in done]
    while left:
        hours = hours_left(bench, left, rows)
        print(f"{len(wanted) - len(left)} of {len(wanted)} rows; about {hours:.2f} hours left", flush=True)
        if options.plan:
            print("\n".join(case.key for case in left))
            return
        rows.append(bench.row(left.pop(0)))
        write_results(options.results, rows)
        print({key: value for key, value in rows[-1].items() if value is not None and key != "key"}, flush=True)
    if options.plot:
        save(figure([row for row in rows if row["model"] == name], targets=options.targets), options.plot)
    print(f"all {len(wanted)} rows are in {options.results}")


if __name__ == "__main__":
    main()
