"""Stage search_first: rescale factors for the first target on the base model."""

from functools import partial

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.models.base import BaseModel, load_model, load_tokenizer
from ropewalk.models.factors import SearchedFactors
from ropewalk.report.mlflow_runs import log_search
from ropewalk.search.distributed import publish
from ropewalk.search.history import provenance
from ropewalk.search.targets import TargetSearch
from ropewalk.stage import Stage, run


def search_first(stage: Stage) -> None:
    config = stage.config
    base = BaseModel.read(stage.inputs / "base.json")
    search = TargetSearch(
        partial(load_model, base.path, **config.model.loading),
        TokenStore(stage.inputs / "tokens" / "search"),
        config=config.search,
        target=config.extension.search_first,
        original_length=base.original_length,
        seed=config.seed,
        state_folder=stage.state,
        load_tokenizer=partial(load_tokenizer, base.path, **config.model.trust),
        name=f"{stage.name} {config.search.study_name or stage.state.name}",
        label="factors",
    )
    results = search.first(base.start_scaling)
    target = results[max(results)]
    origin = provenance(target, search=config.search.name, commit=tracking.commit_of())
    shorter = tuple(results[length].best for length in sorted(results)[:-1])
    factors = {
        "first.json": SearchedFactors(target.best, origin, shorter).to_json(),
        "first_gradient.json": SearchedFactors(target.gradient or target.best, origin).to_json(),
    }
    publish(
        search,
        results,
        factors,
        stage=stage.name,
        output=stage.output,
        log_search=log_search,
        log_file=tracking.log_file,
    )


if __name__ == "__main__":
    run("search_first", search_first, sections=("extension", "search", "model"), inputs=("base.json", "tokens"))
