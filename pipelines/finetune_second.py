"""Stage finetune_second: training goes on at the first target; a control reads as many tokens in the old window."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table
from ropewalk.finetune.history import training_metrics
from ropewalk.finetune.schedule import searched_scalings, shape_of, train_schedule
from ropewalk.finetune.train import save_checkpoint, train_control
from ropewalk.models.base import check_same_model, load_model, load_tokenizer, trained_under
from ropewalk.stage import Stage, run


def finetune_second(stage: Stage) -> None:
    config, store = stage.config, TokenStore(stage.inputs / "tokens" / "train")
    base = read_json(stage.inputs / "base.json")
    checkpoints = stage.output / "checkpoints"
    plots = stage.output / "plots"
    tokenizer = load_tokenizer(base["path"], **config.model.trust)
    start = stage.inputs / "checkpoints" / "finetune_first"
    model = load_model(str(start), **config.model.loading)
    check_same_model(model, base, path=str(start))
    rows, scaling = train_schedule(
        model,
        tokenizer,
        store,
        config.finetune,
        stage="second",
        searched=searched_scalings((stage.inputs / "factors" / "first.json").read_text()),
        shape=shape_of(base),
        seed=config.seed + 1,
        state_folder=stage.state / "finetune_second",
        logger=tracking.lightning_logger(),
        start=trained_under(start),
    )
    mixed = config.finetune.short_share > 0
    save_checkpoint(model, tokenizer, scaling, checkpoints / "finetune_second", mixed=mixed)
    write_table(plots / "finetune_second.csv", rows)
    metrics = {"finetune_second": training_metrics(rows)}
    # An empty result without a control, since DVC wants every out of a stage.
    (checkpoints / "control").mkdir(parents=True, exist_ok=True)
    rows = []
    if config.finetune.control:
        model = load_model(base["path"], **config.model.loading)
        window, state = base["original_length"], stage.state / "control"
        rows = train_control(
            model, tokenizer, store, config.finetune, window=window, seed=config.seed + 1, state_folder=state
        )
        save_checkpoint(model, tokenizer, None, checkpoints / "control")
        metrics["control"] = training_metrics(rows)
    write_table(plots / "control.csv", rows)
    stage.write_metrics(metrics)


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json", "checkpoints/finetune_first")
    run("finetune_second", finetune_second, sections=("finetune", "model"), inputs=needed)
