"""Stage prompts: every recall prompt that evaluate asks, drawn once, the same for every method and model."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.drawing import all_draws, write_prompts
from ropewalk.files import read_json
from ropewalk.models.base import load_tokenizer
from ropewalk.stage import Stage, run


def prompts(stage: Stage) -> None:
    config, base = stage.config, read_json(stage.inputs / "base.json")
    folder = stage.output / "prompts"
    sets = write_prompts(
        folder,
        all_draws(config.evaluate, target=config.road.first_target, seed=config.seed),
        load_tokenizer(base["path"], **config.model.trust),
        TokenStore(stage.inputs / "tokens" / "test"),
    )
    tracking.log_file(folder / "prompts.json")
    stage.write_metrics({key: sum(one[key] for one in sets) for key in ("prompts", "tokens")})


if __name__ == "__main__":
    run("prompts", prompts, sections=("evaluate", "model", "road"), inputs=("base.json", "tokens/test"))
