"""Stage search_second: factors for lengths beyond the first target, on the fine-tuned model, without training."""

from functools import partial

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table, write_text
from ropewalk.models.base import load_model, load_tokenizer, trained_under
from ropewalk.rope import RopeScaling
from ropewalk.search.factors import factors_json, provenance, switch_json
from ropewalk.search.history import search_metrics, table
from ropewalk.search.publication import publish
from ropewalk.search.targets import TargetSearch
from ropewalk.stage import Stage, run


def search_second(stage: Stage) -> None:
    config = stage.config
    base, tuned = read_json(stage.inputs / "base.json"), stage.inputs / "checkpoints" / "finetune_second"
    search = TargetSearch(
        partial(load_model, str(tuned), **config.model.loading),
        TokenStore(stage.inputs / "tokens" / "search"),
        config=config.search,
        target=config.road.search_second,
        original_length=base["original_length"],
        seed=config.seed,
        state_folder=stage.state,
        load_tokenizer=partial(load_tokenizer, base["path"], **config.model.trust),
        name=f"{stage.name} {config.search.study_name or stage.state.name}",
        label="second factors",
    )
    searched = RopeScaling.from_json((stage.inputs / "factors" / "first.json").read_text())
    results = search.second(trained_under(tuned) or searched)
    origin = partial(provenance, search=config.search.name, commit=tracking.commit_of())
    by_length = [(length, result.best, origin(result)) for length, result in results.items()]
    factors, plot = stage.output / "factors" / "second_by_length.json", stage.output / "plots" / "search_second.csv"

    text = switch_json(by_length)

    def write() -> None:
        write_text(stage.output / "factors" / "second.json", factors_json(*by_length[-1][1:]))
        write_text(factors, text)
        write_table(plot, table(results))
        stage.write_metrics(search_metrics(results))

    def track() -> None:
        tracking.log_search(stage.name, table(results), plot)
        tracking.log_file(factors)

    publish(search, results, write, track, {factors: text, plot: None})


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json", "checkpoints/finetune_second")
    run("search_second", search_second, sections=("road", "search", "model"), inputs=needed)
