"""Stage export: the extended model as a transformers checkpoint with its model card, and what other software loses."""

from pathlib import Path

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.compare import measure
from ropewalk.evaluate.road import Road
from ropewalk.export.card import license_of, model_card, searches
from ropewalk.export.checkpoint import export_checkpoint
from ropewalk.export.cost import cost_metrics, cost_readings
from ropewalk.export.gguf import export_gguf
from ropewalk.files import read_json, read_table, write_table
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.report.card import card_pictures
from ropewalk.stage import Stage, run


def export(stage: Stage) -> None:
    config, base = stage.config, read_json(stage.inputs / "base.json")
    base["license"] = config.export.license or license_of(base["path"])
    road = Road.read(stage.inputs / "factors", base, config.evaluate, methods=())
    tuned = stage.inputs / "checkpoints" / "finetune_second"
    model, tokenizer = load_model(str(tuned), **config.model.loading), load_tokenizer(str(tuned), **config.model.trust)
    short, long = road.document_sets(TokenStore(stage.inputs / "tokens" / "test"))
    target = road.first.target_length
    readings = cost_readings(road.switch, config.evaluate.lengths, target=target, short=short, long=long)
    costs = measure({"finetuned": model}, readings)
    write_table(stage.output / "plots" / "export.csv", costs)
    perplexity = read_table(stage.inputs / "plots" / "perplexity.csv")
    passkey = read_table(stage.inputs / "plots" / "passkey.csv")
    pictures = card_pictures(perplexity, passkey, original_length=road.window, folder=stage.state)
    made = stage.values("corpus", "finetune")
    card = model_card(
        base=base,
        switch=road.switch,
        perplexity_rows=perplexity,
        passkey_rows=passkey,
        how_made={**searches(read_json(stage.inputs / "factors" / "recovered.json")), **made},
        cost_rows=costs,
        short_factor=config.export.short_factor,
        pictures={path.name: what for path, what in pictures.items()},
    )
    out: Path = stage.output / "model"
    files = {path.name: path.read_bytes() for path in pictures}
    export_checkpoint(
        model, tokenizer, road.switch, out, card=card, short_factor=config.export.short_factor, files=files
    )
    if config.export.gguf is not None:
        export_gguf(out, out / "model.gguf", dtype=config.export.gguf)
    tracking.log_file(out / "README.md")
    stage.write_metrics({"target_length": road.switch[-1][0], "parameters": base["parameters"], **cost_metrics(costs)})


if __name__ == "__main__":
    files = ("plots/perplexity.csv", "plots/passkey.csv", "tokens/test")
    sections = ("export", "model", "corpus", "finetune", "evaluate")
    run("export", export, sections=sections, inputs=("base.json", "checkpoints", "factors", *files))
