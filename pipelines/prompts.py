"""Stage prompts: every recall prompt that evaluate asks, drawn once, the same for every method and model."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.prompt_sets import all_draws, write_prompts
from ropewalk.models.base import BaseModel, load_tokenizer
from ropewalk.stage import Stage, run


def prompts(stage: Stage) -> None:
    config, base = stage.config, BaseModel.read(stage.inputs / "base.json")
    folder = stage.output / "prompts"
    sets = write_prompts(
        folder,
        all_draws(config.evaluate, target=config.extension.target, seed=config.seed),
        load_tokenizer(base.path, **config.model.trust),
        TokenStore(stage.inputs / "tokens" / "test"),
    )
    tracking.log_file(folder / "prompts.json")
    stage.write_metrics({key: sum(row[key] for row in sets) for key in ("prompts", "tokens")})


if __name__ == "__main__":
    run("prompts", prompts, sections=("evaluate", "model", "extension"), inputs=("base.json", "tokens/test"))
