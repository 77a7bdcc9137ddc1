"""Stage finetune_first: the base model trained at half the first target under the first target's factors."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table
from ropewalk.finetune.history import training_metrics
from ropewalk.finetune.schedule import searched_scalings, shape_of, train_schedule
from ropewalk.finetune.train import save_checkpoint
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.stage import Stage, run


def finetune_first(stage: Stage) -> None:
    config = stage.config
    base = read_json(stage.inputs / "base.json")
    model = load_model(base["path"], **config.model.loading)
    tokenizer = load_tokenizer(base["path"], **config.model.trust)
    rows, scaling = train_schedule(
        model,
        tokenizer,
        TokenStore(stage.inputs / "tokens" / "train"),
        config.finetune,
        stage="first",
        searched=searched_scalings((stage.inputs / "factors" / "first.json").read_text()),
        shape=shape_of(base),
        seed=config.seed,
        state_folder=stage.state,
        logger=tracking.lightning_logger() if stage.is_first_process else None,
        parallel=config.parallel,
    )
    if stage.is_first_process:
        mixed = config.finetune.short_share > 0
        save_checkpoint(model, tokenizer, scaling, stage.output / "checkpoints" / "finetune_first", mixed=mixed)
    write_table(stage.output / "plots" / "finetune_first.csv", rows)
    stage.write_metrics(training_metrics(rows))


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json")
    run("finetune_first", finetune_first, sections=("finetune", "model"), inputs=needed, together=True)
