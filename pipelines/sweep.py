"""Search for hyperparameters of the first fine-tuning with Optuna; needs the results up to the stage search_first.

python pipelines/sweep.py hparams_search=finetune output=outputs/sweep
"""

from ropewalk.files import write_json
from ropewalk.hparams_search import search_hparams
from ropewalk.stage import Stage, run


def sweep(stage: Stage) -> None:
    best = search_hparams(stage)
    overrides = [f"{key}={value}" for key, value in best.params.items()]
    write_json(stage.output / "best.json", {"perplexity_at_target": best.value, "overrides": overrides})
    stage.write_metrics({"perplexity_at_target": best.value})
    print(f"best: perplexity {best.value:.4f} with", *overrides)


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json")
    run("sweep", sweep, sections=("hparams_search", "finetune", "model"), inputs=needed)
