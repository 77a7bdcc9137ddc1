"""Stage search_second: factors for lengths beyond the first target, on the fine-tuned model, without training."""

from functools import partial

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table, write_text
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.rope import RopeScaling, switch_to_json
from ropewalk.search.targets import TargetSearch, search_metrics, table
from ropewalk.stage import Stage, run


def search_second(stage: Stage) -> None:
    config = stage.config
    base = read_json(stage.inputs / "base.json")
    results = TargetSearch(
        partial(load_model, str(stage.inputs / "checkpoints" / "finetune_second"), dtype=config.model.dtype),
        TokenStore(stage.inputs / "tokens" / "search"),
        config=config.search,
        target=config.road.search_second,
        original_length=base["original_length"],
        seed=config.seed,
        state_folder=stage.state,
        load_tokenizer=partial(load_tokenizer, base["path"]),
        name=config.search.study_name or f"{stage.name} {stage.state.name}",
        label="second factors",
    ).second(RopeScaling.from_json((stage.inputs / "factors" / "first.json").read_text()))
    by_length = tuple((length, result.best) for length, result in results.items())
    factors = stage.output / "factors"
    write_text(factors / "second.json", by_length[-1][1].to_json())
    write_text(factors / "second_by_length.json", switch_to_json(by_length))
    plot = stage.output / "plots" / "search_second.csv"
    write_table(plot, table(results))
    tracking.log_search(stage.name, table(results), plot)
    tracking.log_file(factors / "second_by_length.json")
    stage.write_metrics(search_metrics(results))


if __name__ == "__main__":
    needed = ("base.json", "tokens", "factors/first.json", "checkpoints/finetune_second")
    run("search_second", search_second, sections=("road", "search", "model"), inputs=needed)
