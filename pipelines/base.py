"""Stage base: load the model to extend, check that its class is computed rightly, and describe it for later stages."""

from ropewalk.models.base import describe, load_model
from ropewalk.models.checks import check_loaded
from ropewalk.models.memory import check_fits
from ropewalk.stage import Stage, run


def base(stage: Stage) -> None:
    config = stage.config.model
    check_fits(config.path, dtype=config.dtype, **config.trust)
    model = load_model(config.path, **config.loading)
    described = describe(
        model,
        name=config.name,
        path=config.path,
        original_length=config.original_length,
        start=config.start,
        **config.trust,
    )
    check_loaded(model, described)
    described.write(stage.output / "base.json")
    stage.write_metrics({"parameters": described.parameters, "original_length": described.original_length})


if __name__ == "__main__":
    run("base", base, sections=("model",))
