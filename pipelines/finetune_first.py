"""Stage finetune_first: the base model trained at half the first target under the first target's factors."""

from ropewalk.stage import Stage, run


def finetune_first(stage: Stage) -> None:
    # Imported late, because they take seconds and not every way of an extension trains (`ropewalk.ways`).
    from ropewalk import tracking
    from ropewalk.files import write_table
    from ropewalk.finetune.history import training_metrics
    from ropewalk.finetune.schedule import searched_steps, train_model
    from ropewalk.models.base import BaseModel

    config, base = stage.config, BaseModel.read(stage.inputs / "base.json")
    rows = train_model(
        base.path,
        searched_steps(config, "first", stage.inputs / "factors" / "first.json", base.shape),
        config,
        base,
        state_folder=stage.state,
        checkpoint=stage.output / "checkpoints" / "finetune_first" if stage.is_first_process else None,
        logger=tracking.lightning_logger() if stage.is_first_process else None,
    )
    write_table(stage.output / "plots" / "finetune_first.csv", rows["first"])
    stage.write_metrics(training_metrics(rows["first"]))


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json")
    run("finetune_first", finetune_first, sections=("finetune", "model"), inputs=needed, together=True)
