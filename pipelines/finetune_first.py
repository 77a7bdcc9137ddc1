"""Stage finetune_first: the base model trained at half the first target under the first target's factors."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table
from ropewalk.finetune.history import training_metrics
from ropewalk.finetune.train import finetune, save_checkpoint
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.rope import RopeScaling
from ropewalk.stage import Stage, run


def finetune_first(stage: Stage) -> None:
    config = stage.config
    base = read_json(stage.inputs / "base.json")
    scaling = RopeScaling.from_json((stage.inputs / "factors" / "first.json").read_text())
    model, tokenizer = load_model(base["path"], dtype=config.model.dtype), load_tokenizer(base["path"])
    rows = finetune(
        model,
        tokenizer,
        TokenStore(stage.inputs / "tokens" / "train"),
        config.finetune.first,
        config.finetune,
        scaling=scaling,
        seed=config.seed,
        state_folder=stage.state,
        label=f"fine-tuning at {config.finetune.first.length:,}",
        logger=tracking.lightning_logger() if stage.is_first_process else None,
        parallel=config.parallel,
    )
    if stage.is_first_process:
        save_checkpoint(model, tokenizer, scaling, stage.output / "checkpoints" / "finetune_first")
    write_table(stage.output / "plots" / "finetune_first.csv", rows)
    stage.write_metrics(training_metrics(rows))


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json")
    run("finetune_first", finetune_first, sections=("finetune", "model"), inputs=needed, together=True)
