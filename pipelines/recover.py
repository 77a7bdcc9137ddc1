"""Stage recover: factors for inputs that are short again, and the extended model's factors by input length."""

from functools import partial

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_table, write_text
from ropewalk.models.base import load_model, load_tokenizer, own_switch, trained_under
from ropewalk.search.factors import Entry, factors_entry, provenance, switch_entries, switch_json
from ropewalk.search.history import search_metrics, table
from ropewalk.search.publication import publish
from ropewalk.search.targets import TargetSearch
from ropewalk.stage import Stage, run


def recover(stage: Stage) -> None:
    config = stage.config
    base, tuned = read_json(stage.inputs / "base.json"), stage.inputs / "checkpoints" / "finetune_second"
    searched = factors_entry((stage.inputs / "factors" / "first.json").read_text())
    first = (searched[0], trained_under(tuned) or searched[1], searched[2])
    second = switch_entries((stage.inputs / "factors" / "second_by_length.json").read_text())
    search = TargetSearch(
        partial(load_model, str(tuned), **config.model.loading),
        TokenStore(stage.inputs / "tokens" / "search"),
        config=config.search,
        target=config.road.recover,
        original_length=base["original_length"],
        seed=config.seed,
        state_folder=stage.state,
        load_tokenizer=partial(load_tokenizer, base["path"], **config.model.trust),
        name=f"{stage.name} {config.search.study_name or stage.state.name}",
        label="short-input factors",
    )
    results = search.recover(first[1], [scaling for _, scaling in own_switch(base)])
    origin = partial(provenance, search=config.search.name, commit=tracking.commit_of())
    short: list[Entry] = [(length, result.best, origin(result)) for length, result in results.items()]
    if original := trained_under(tuned, short=True):
        # Trained with mixed windows: what it read in its window is what it shall read there.
        kept = [entry for entry in short if entry[0] > original.target_length]
        short = [(original.target_length, original, None), *kept]
    factors, plot = stage.output / "factors" / "recovered.json", stage.output / "plots" / "recover.csv"
    text = switch_json([*short, first, *second])

    def write() -> None:
        write_text(factors, text)
        write_table(plot, table(results))
        stage.write_metrics(search_metrics(results))

    def track() -> None:
        tracking.log_search(stage.name, table(results), plot)
        tracking.log_file(factors)

    publish(search, results, write, track, {factors: text, plot: None})


if __name__ == "__main__":
    files = ("first.json", "second_by_length.json")
    needed = ("base.json", "tokens", "checkpoints/finetune_second", *(f"factors/{name}" for name in files))
    run("recover", recover, sections=("road", "search", "model"), inputs=needed)
