"""Stage search_first: rescale factors for the first target on the base model."""

from functools import partial

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table, write_text
from ropewalk.models.base import load_model, load_tokenizer, own_scaling
from ropewalk.search.factors import factors_json, provenance
from ropewalk.search.history import search_metrics, table
from ropewalk.search.publication import publish
from ropewalk.search.targets import TargetSearch
from ropewalk.stage import Stage, run


def search_first(stage: Stage) -> None:
    config = stage.config
    base = read_json(stage.inputs / "base.json")
    search = TargetSearch(
        partial(load_model, base["path"], **config.model.loading),
        TokenStore(stage.inputs / "tokens" / "search"),
        config=config.search,
        target=config.road.search_first,
        original_length=base["original_length"],
        seed=config.seed,
        state_folder=stage.state,
        load_tokenizer=partial(load_tokenizer, base["path"], **config.model.trust),
        name=f"{stage.name} {config.search.study_name or stage.state.name}",
        label="factors",
    )
    results = search.first(own_scaling(base))
    found = results[max(results)]
    origin = provenance(found, search=config.search.name, commit=tracking.commit_of())
    factors, plot = stage.output / "factors" / "first.json", stage.output / "plots" / "search_first.csv"

    text = factors_json(found.best, origin, shorter=[results[length].best for length in sorted(results)[:-1]])

    def write() -> None:
        write_text(factors, text)
        write_text(stage.output / "factors" / "first_seed.json", factors_json(found.seed or found.best, origin))
        write_table(plot, table(results))
        stage.write_metrics(search_metrics(results))

    def track() -> None:
        tracking.log_search(stage.name, table(results), plot)
        tracking.log_file(factors)

    publish(search, results, write, track, {factors: text, plot: None})


if __name__ == "__main__":
    run("search_first", search_first, sections=("road", "search", "model"), inputs=("base.json", "tokens"))
