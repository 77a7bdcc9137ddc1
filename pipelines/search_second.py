"""Stage search_second: factors for lengths beyond the first target, on the fine-tuned model, without training."""

from functools import partial

from ropewalk.stage import Stage, run


def search_second(stage: Stage) -> None:
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
    search = TargetSearch(
        partial(load_model, str(tuned), **config.model.loading),
        TokenStore(stage.inputs / "tokens" / "search"),
        config=config.search,
        target=config.extension.search_second,
        original_length=base.original_length,
        seed=config.seed,
        state_folder=stage.state,
        load_tokenizer=partial(load_tokenizer, base.path, **config.model.trust),
        name=f"{stage.name} {config.search.study_name or stage.state.name}",
        label="second factors",
    )
    searched = SearchedFactors.read(stage.inputs / "factors" / "first.json").scaling
    results = search.second(trained_under(tuned) or searched)
    origin = partial(provenance, search=config.search.name, commit=tracking.commit_of())
    by_length = tuple(FactorsEntry(length, result.best, origin(result)) for length, result in results.items())
    longest = SearchedFactors(by_length[-1].scaling, by_length[-1].provenance)
    publish(
        search,
        results,
        {"second_by_length.json": FactorsByLength(by_length).to_json(), "second.json": longest.to_json()},
        stage=stage.name,
        output=stage.output,
        log_search=log_search,
        log_file=tracking.log_file,
    )


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json", "checkpoints/finetune_second")
    run("search_second", search_second, sections=("extension", "search", "model"), inputs=needed)
