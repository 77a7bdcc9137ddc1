"""What the walker must show (`make bench-walker`): training that is done, a window that matters, retrieval in it."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from ropewalk.config import CorpusConfig, WalkerConfig
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.sources import find_shards
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.passkey import passkey_accuracy, passkey_prompts
from ropewalk.evaluate.perplexity import DocumentSet, perplexities
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.models.walker import WINDOW, train_walker, window_perplexity
from ropewalk.rope import LengthSwitch, RopeScaling, extend

FOLDER = Path("work/bench-walker")


def main() -> None:
    os.chdir(Path(__file__).resolve().parents[2])
    values: Any = OmegaConf.to_container(OmegaConf.load("conf/corpus/stdlib.yaml"))
    corpus = CorpusConfig(**values, min_long_documents=8, long_tokens=16_384)
    model, tokenizer = load_model("models/walker"), load_tokenizer("models/walker")
    tokens = FOLDER / "tokens"
    if not (tokens / "card.json").is_file():
        shards = find_shards(corpus, folder=FOLDER, downloads=FOLDER)
        prepare_shards(shards, config=corpus, tokenizer=tokenizer, state=FOLDER / "prepare", folder=tokens)
    test = TokenStore(tokens / "test")
    plain = RopeScaling((1.0,) * 16, WINDOW, 8 * WINDOW, method="none")
    documents_2048 = DocumentSet.of("all", test, length=8 * WINDOW, documents=None)
    by_length = perplexities(model, plain, documents_2048, [WINDOW, 8 * WINDOW])
    prompts = passkey_prompts(tokenizer, length=WINDOW, depths=10, trials=100, seed=0)
    rows = passkey_accuracy(model, tokenizer, LengthSwitch(((WINDOW, plain),)), prompts)
    passkey = ResultTable.from_rows(rows).accuracy() or 0.0
    extend(model, plain)
    before = window_perplexity(model, test, rows=1024)
    walker = WalkerConfig()
    again = dataclasses.replace(
        walker, cycles=[sum(walker.cycles) // 2], learning_rates=walker.learning_rates[-1:], practice_steps=0
    )
    train_walker(model, tokenizer, TokenStore(tokens / "train"), again, seed=1, state_folder=FOLDER)
    after = window_perplexity(model.eval(), test, rows=1024)
    write_results(
        Path("benchmarks/walker/results.json"),
        [
            {
                "case": "training is done",
                "steps": sum(again.cycles),
                "perplexity_before": before,
                "perplexity_after": after,
                "gain_percent": 100 * (1 - after / before),
                "limit_percent": 2.0,
            },
            {
                "case": "the window matters",
                "perplexity_256": by_length[WINDOW],
                "perplexity_2048": by_length[8 * WINDOW],
                "ratio": by_length[8 * WINDOW] / by_length[WINDOW],
                "min_ratio": 2.0,
            },
            {
                "case": "passkey inside 256 tokens",
                "accuracy": passkey,
                "trials": sum(row["trials"] for row in rows),
                "min_accuracy": 0.95,
            },
        ],
    )


if __name__ == "__main__":
    main()
