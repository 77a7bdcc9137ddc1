"""Stage prepare: raw text to token stores of the splits train, search and test, with a data card."""

from pathlib import Path

from ropewalk import tracking
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.sources import check_fingerprint, downloads_folder, evaluation_shards, find_shards
from ropewalk.corpus.split import SPLITS
from ropewalk.files import locked
from ropewalk.models.base import load_tokenizer
from ropewalk.stage import Stage, run


def prepare(stage: Stage) -> None:
    config = stage.config.corpus
    folder = stage.output / "tokens"
    with locked(stage.output, "prepare"), locked(stage.state, "prepare"):
        check_fingerprint(config)
        downloads = downloads_folder(config, Path(stage.config.work))
        card = prepare_shards(
            find_shards(config, folder=stage.state, downloads=downloads),
            evaluation=evaluation_shards(config),
            config=config,
            tokenizer=load_tokenizer(stage.config.model.path, **stage.config.model.trust),
            state=stage.state,
            folder=folder,
        )
    tracking.log_file(folder / "card.json")
    tracking.log_file(folder / "card.png")
    tracking.log_dataset(config.name, source=str(config.path or config.url or config.fingerprint), card=card)
    stage.write_metrics(
        {
            "rejected": sum(card["rejected"].values()),
            "dropped": sum(card["dropped"].values()),
            **{split: {k: card[split][k] for k in ("documents", "tokens")} for split in SPLITS},
        }
    )


if __name__ == "__main__":
    run("prepare", prepare, sections=("corpus", "model"))
