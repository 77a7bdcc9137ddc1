"""Stage finetune_baselines: the base model trained under published methods' factors, for the same steps as under ours.

Off by default; baselines.methods=[pi,ntk,yarn] trains one model for each, at the cost of both parts of fine-tuning.
"""

from ropewalk.stage import Stage, run


def finetune_baselines(stage: Stage) -> None:
    # Imported late, because they take seconds and not every way of an extension trains (`ropewalk.ways`).
    from ropewalk.files import write_table
    from ropewalk.finetune.history import training_metrics
    from ropewalk.finetune.schedule import train_baseline
    from ropewalk.models.base import BaseModel

    config, base = stage.config, BaseModel.read(stage.inputs / "base.json")
    checkpoints = stage.output / "checkpoints" / "baselines"
    # There with no baseline too, since DVC wants every out of a stage.
    checkpoints.mkdir(parents=True, exist_ok=True)
    table, metrics = [], {}
    for method in config.baselines.methods:
        checkpoint = checkpoints / method if stage.is_first_process else None
        parts = train_baseline(method, config, base, state_folder=stage.state / method, checkpoint=checkpoint)
        for part, rows in enumerate(parts.values(), start=1):
            table += [{"method": method, "part": part, **row} for row in rows]
        metrics[method] = training_metrics(parts["second"])
    write_table(stage.output / "plots" / "finetune_baselines.csv", table)
    stage.write_metrics(metrics)


if __name__ == "__main__":
    sections = ("finetune", "model", "baselines", "extension")
    run("finetune_baselines", finetune_baselines, sections=sections, inputs=("base.json", "tokens"), together=True)
