"""Stage recover: factors for inputs that are short again, and the extended model's factors by input length."""

from functools import partial

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table, write_text
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.rope import RopeScaling, switch_from_json, switch_to_json
from ropewalk.search.targets import TargetSearch, search_metrics, table
from ropewalk.stage import Stage, run


def recover(stage: Stage) -> None:
    config = stage.config
    base = read_json(stage.inputs / "base.json")
    first = RopeScaling.from_json((stage.inputs / "factors" / "first.json").read_text())
    second = switch_from_json((stage.inputs / "factors" / "second_by_length.json").read_text())
    results = TargetSearch(
        partial(load_model, str(stage.inputs / "checkpoints" / "finetune_second"), dtype=config.model.dtype),
        TokenStore(stage.inputs / "tokens" / "search"),
        config=config.search,
        target=config.road.recover,
        original_length=base["original_length"],
        seed=config.seed,
        state_folder=stage.state,
        load_tokenizer=partial(load_tokenizer, base["path"]),
        name=config.search.study_name or f"{stage.name} {stage.state.name}",
        label="short-input factors",
    ).recover(first)
    short = tuple((length, result.best) for length, result in results.items())
    path = stage.output / "factors" / "recovered.json"
    write_text(path, switch_to_json((*short, (first.target_length, first), *second)))
    plot = stage.output / "plots" / "recover.csv"
    write_table(plot, table(results))
    tracking.log_search(stage.name, table(results), plot)
    tracking.log_file(path)
    stage.write_metrics(search_metrics(results))


if __name__ == "__main__":
    files = ("first.json", "second_by_length.json")
    needed = ("base.json", "tokens", "checkpoints/finetune_second", *(f"factors/{name}" for name in files))
    run("recover", recover, sections=("road", "search", "model"), inputs=needed)
