"""Stage recover: factors for inputs that are short again, and the extended model's factors by input length."""

from functools import partial

from ropewalk.stage import Stage, run


def recover(stage: Stage) -> None:
    # Imported late, because they take seconds and not every way of an extension searches here (`ropewalk.ways`).
    from ropewalk import tracking
    from ropewalk.corpus.store import TokenStore
    from ropewalk.models.base import BaseModel, load_model, load_tokenizer, trained_under
    from ropewalk.models.factors import FactorsByLength, FactorsEntry, SearchedFactors
    from ropewalk.report.mlflow_runs import log_search
    from ropewalk.search.distributed import publish
    from ropewalk.search.history import provenance
    from ropewalk.search.targets import TargetSearch

    config = stage.config
    base, tuned = BaseModel.read(stage.inputs / "base.json"), stage.inputs / "checkpoints" / "finetune_second"
    searched = SearchedFactors.read(stage.inputs / "factors" / "first.json")
    first = FactorsEntry(searched.scaling.target_length, trained_under(tuned) or searched.scaling, searched.provenance)
    second = FactorsByLength.read(stage.inputs / "factors" / "second_by_length.json")
    search = TargetSearch(
        partial(load_model, str(tuned), **config.model.loading),
        TokenStore(stage.inputs / "tokens" / "search"),
        config=config.search,
        target=config.extension.recover,
        original_length=base.original_length,
        seed=config.seed,
        state_folder=stage.state,
        load_tokenizer=partial(load_tokenizer, base.path, **config.model.trust),
        name=f"{stage.name} {config.search.study_name or stage.state.name}",
        label="short-input factors",
    )
    results = search.recover(first.scaling, base.start_switch.scalings if base.start_switch else ())
    origin = partial(provenance, search=config.search.name, commit=tracking.commit_of())
    short = [FactorsEntry(length, result.best, origin(result)) for length, result in results.items()]
    publish(
        search,
        results,
        {"recovered.json": FactorsByLength((*short, first, *second.entries)).to_json()},
        stage=stage.name,
        output=stage.output,
        log_search=log_search,
        log_file=tracking.log_file,
    )


if __name__ == "__main__":
    deps = ("base.json", "tokens", "checkpoints/finetune_second", "factors/first.json", "factors/second_by_length.json")
    run("recover", recover, sections=("extension", "search", "model"), inputs=deps)
