"""Stage base: the model to extend, checked and described."""

from ropewalk.files import write_json
from ropewalk.models.base import describe, load_model
from ropewalk.stage import Stage, run


def base(stage: Stage) -> None:
    config = stage.config.model
    model = load_model(config.path, **config.loading)
    about = describe(
        model, name=config.name, path=config.path, original_length=config.original_length, start=config.start
    )
    write_json(stage.output / "base.json", about.to_dict())
    stage.write_metrics({"parameters": about.parameters, "original_length": about.original_length})


if __name__ == "__main__":
    run("base", base, sections=("model",))
