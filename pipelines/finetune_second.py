"""Stage finetune_second: training resumes at the first target; a control reads as many tokens in the old window."""

from ropewalk.stage import Stage, run


def finetune_second(stage: Stage) -> None:
    # Imported late, because they take seconds and not every way of an extension trains (`ropewalk.ways`).
    from ropewalk import tracking
    from ropewalk.files import write_table
    from ropewalk.finetune.history import training_metrics
    from ropewalk.finetune.schedule import searched_steps, train_control, train_model
    from ropewalk.models.base import BaseModel, trained_under

    config, base = stage.config, BaseModel.read(stage.inputs / "base.json")
    first = stage.inputs / "checkpoints" / "finetune_first"
    checkpoints = stage.output / "checkpoints"
    plots = stage.output / "plots"
    rows = train_model(
        str(first),
        searched_steps(config, "second", stage.inputs / "factors" / "first.json", base.shape),
        config,
        base,
        state_folder=stage.state,
        checkpoint=checkpoints / "finetune_second" if stage.is_first_process else None,
        logger=tracking.lightning_logger() if stage.is_first_process else None,
        start=trained_under(first),
    )
    write_table(plots / "finetune_second.csv", rows["second"])
    metrics = {"finetune_second": training_metrics(rows["second"])}
    # An empty result without a control, since DVC wants every out of a stage.
    (checkpoints / "control").mkdir(parents=True, exist_ok=True)
    if config.finetune.control:
        checkpoint = checkpoints / "control" if stage.is_first_process else None
        rows |= train_control(config, base, state_folder=stage.state, checkpoint=checkpoint)
        metrics["control"] = training_metrics(rows["control"])
    write_table(plots / "control.csv", rows.get("control", []))
    stage.write_metrics(metrics)


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json", "checkpoints/finetune_first")
    run("finetune_second", finetune_second, sections=("finetune", "model"), inputs=needed, together=True)
