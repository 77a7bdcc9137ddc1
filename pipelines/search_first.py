"""Stage search_first: rescale factors for the first target on the base model."""

from functools import partial

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table, write_text
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.search.targets import TargetSearch, search_metrics, table
from ropewalk.stage import Stage, run


def search_first(stage: Stage) -> None:
    config = stage.config
    base = read_json(stage.inputs / "base.json")
    results = TargetSearch(
        partial(load_model, base["path"], dtype=config.model.dtype),
        TokenStore(stage.inputs / "tokens" / "search"),
        config=config.search,
        target=config.road.search_first,
        original_length=base["original_length"],
        seed=config.seed,
        state_folder=stage.state,
        load_tokenizer=partial(load_tokenizer, base["path"]),
        name=config.search.study_name or f"{stage.name} {stage.state.name}",
        label="factors",
    ).first()
    found = results[max(results)]
    write_text(stage.output / "factors" / "first.json", found.best.to_json())
    write_text(stage.output / "factors" / "first_seed.json", (found.seed or found.best).to_json())
    plot = stage.output / "plots" / "search_first.csv"
    write_table(plot, table(results))
    tracking.log_search(stage.name, table(results), plot)
    tracking.log_file(stage.output / "factors" / "first.json")
    stage.write_metrics(search_metrics(results))


if __name__ == "__main__":
    run("search_first", search_first, sections=("road", "search", "model"), inputs=("base.json", "tokens"))
