"""Stage finetune_second: training goes on at the first target; a control reads as many tokens in the old window."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table
from ropewalk.finetune.history import training_metrics
from ropewalk.finetune.train import control_step, finetune, save_checkpoint
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.rope import RopeScaling
from ropewalk.stage import Stage, run


def finetune_second(stage: Stage) -> None:
    config = stage.config
    base = read_json(stage.inputs / "base.json")
    scaling = RopeScaling.from_json((stage.inputs / "factors" / "first.json").read_text())
    tokenizer = load_tokenizer(base["path"])
    control = control_step(config.finetune, window=base["original_length"])
    start = str(stage.inputs / "checkpoints" / "finetune_first")
    parts = [("finetune_second", start, config.finetune.second, scaling), ("control", base["path"], control, None)]
    metrics = {}
    for name, path, step, own in parts:
        if name == "control" and not config.finetune.control:
            # An empty result, since DVC wants every out of a stage.
            (stage.output / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
            write_table(stage.output / "plots" / f"{name}.csv", [])
            continue
        model = load_model(path, dtype=config.model.dtype)
        rows = finetune(
            model,
            tokenizer,
            TokenStore(stage.inputs / "tokens" / "train"),
            step,
            config.finetune,
            scaling=own,
            seed=config.seed + 1,
            state_folder=stage.state / name,
            label=f"{'control' if name == 'control' else 'fine-tuning'} at {step.length:,}",
            logger=tracking.lightning_logger() if stage.is_first_process and name != "control" else None,
            parallel=config.parallel,
        )
        if stage.is_first_process:
            save_checkpoint(model, tokenizer, own, stage.output / "checkpoints" / name)
        write_table(stage.output / "plots" / f"{name}.csv", rows)
        metrics[name] = training_metrics(rows)
    stage.write_metrics(metrics)


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json", "checkpoints/finetune_first")
    run("finetune_second", finetune_second, sections=("finetune", "model"), inputs=needed, together=True)
