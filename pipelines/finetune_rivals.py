"""Stage finetune_rivals: the base model trained under published methods' factors, for the same steps as under ours.

Off by default; rivals.methods=[pi,ntk,yarn] trains one model for each, at the cost of both parts of fine-tuning.
"""

from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table
from ropewalk.finetune.history import training_metrics
from ropewalk.finetune.train import finetune, save_checkpoint
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.rope import RotaryShape
from ropewalk.rope.methods import for_training
from ropewalk.stage import Stage, run


def finetune_rivals(stage: Stage) -> None:
    config, base = stage.config, read_json(stage.inputs / "base.json")
    shape = RotaryShape(base["rotary_dim"], base["base"], base["original_length"])
    tokenizer = load_tokenizer(base["path"])
    store = TokenStore(stage.inputs / "tokens" / "train")
    # There with no rival too, since DVC wants every out of a stage.
    (stage.output / "checkpoints" / "rivals").mkdir(parents=True, exist_ok=True)
    table, metrics = [], {}
    for method in config.rivals.methods:
        scaling = for_training(method, **vars(shape), target_length=config.road.first_target)
        model = load_model(base["path"], dtype=config.model.dtype)
        for part, step in enumerate((config.finetune.first, config.finetune.second)):
            rows = finetune(
                model,
                tokenizer,
                store,
                step,
                config.finetune,
                scaling=scaling,
                seed=config.seed + part,
                state_folder=stage.state / f"{method}_{part}",
                label=f"fine-tuning with {method} at {step.length:,}",
            )
            table += [{"method": method, "part": part + 1, **row} for row in rows]
        save_checkpoint(model, tokenizer, scaling, stage.output / "checkpoints" / "rivals" / method)
        metrics[method] = training_metrics(rows)
    write_table(stage.output / "plots" / "finetune_rivals.csv", table)
    stage.write_metrics(metrics)


if __name__ == "__main__":
    needed = ("base.json", "tokens")
    run("finetune_rivals", finetune_rivals, sections=("finetune", "model", "rivals", "road"), inputs=needed)
