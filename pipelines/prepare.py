"""Stage prepare: raw text to token stores of the splits train, search and test, with a data card."""

from collections import Counter

from ropewalk import tracking
from ropewalk.corpus.prepare import prepare_stores
from ropewalk.corpus.sources import check_fingerprint, read_corpus
from ropewalk.models.base import load_tokenizer
from ropewalk.stage import Stage, run


def prepare(stage: Stage) -> None:
    config = stage.config.corpus
    check_fingerprint(config)
    rejected: Counter[str] = Counter()
    documents = read_corpus(config, folder=stage.state, rejected=rejected)
    folder = stage.output / "tokens"
    tokenizer = load_tokenizer(stage.config.model.path)
    card = prepare_stores(documents, config=config, tokenizer=tokenizer, rejected=rejected, folder=folder)
    tracking.log_file(folder / "card.json")
    stage.write_metrics(
        {
            "rejected": sum(rejected.values()),
            **{split: {k: card[split][k] for k in ("documents", "tokens")} for split in ("train", "search", "test")},
        }
    )


if __name__ == "__main__":
    run("prepare", prepare, sections=("corpus", "model"))
