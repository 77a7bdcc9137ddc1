"""Stage export: write the extended model as a transformers checkpoint with its card; measure other software's loss."""

from ropewalk import tracking
from ropewalk.corpus.store import TokenStore
from ropewalk.evaluate.cache import model_cache
from ropewalk.evaluate.compare import measure
from ropewalk.evaluate.extension import Extension
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.export.card import how_made, license_of, model_card
from ropewalk.export.checkpoint import export_checkpoint
from ropewalk.export.cost import cost_metrics, cost_tasks
from ropewalk.export.gguf import export_gguf
from ropewalk.files import read_json, write_table
from ropewalk.models.base import BaseModel, extended_path, load_model, load_tokenizer
from ropewalk.report.page import card_pictures
from ropewalk.stage import Stage, run


def export(stage: Stage) -> None:
    config, base = stage.config, BaseModel.read(stage.inputs / "base.json")
    extension = Extension.read(stage.inputs, base, config.evaluate, methods=())
    path = extended_path(base, stage.inputs / "checkpoints")
    model, tokenizer = load_model(path, **config.model.loading), load_tokenizer(path, **config.model.trust)
    sets = extension.document_sets(TokenStore(stage.inputs / "tokens" / "test"))
    switch, short_factor, target = extension.switch, config.export.short_factor, extension.first.target_length
    tasks = cost_tasks(extension.extended, switch, config.evaluate.lengths, sets, target=target)
    name, dtype = extension.extended, config.model.dtype
    trust = config.model.trust_remote_code
    cache = model_cache(config.evaluate.cache, {name: path}, dtype=dtype, trust_remote_code=trust)
    costs = [result.row for result in measure({name: model}, tasks, cache=cache, chunk=config.evaluate.chunk_tokens)]
    write_table(stage.output / "plots" / "export.csv", costs)
    perplexity, passkey = (ResultTable.read(stage.inputs / f"plots/{name}.csv") for name in ("perplexity", "passkey"))
    settings = stage.values("corpus", *(["finetune"] if extension.is_trained else []))
    pictures = card_pictures(perplexity, passkey, original_length=extension.window, folder=stage.state)
    card = model_card(
        base=base,
        license_name=config.export.license or license_of(base.path),
        switch=switch,
        perplexity_rows=perplexity.rows(),
        passkey_rows=passkey.rows(),
        how_made=how_made(stage.inputs, settings),
        cost_rows=costs,
        short_factor=short_factor,
        pictures={path.name: description for path, description in pictures.items()},
        extended=extension.extended,
        query_scales=extension.first.query_scales,
        verdict=read_json(stage.inputs / "verdict.json")["sentences"],
    )
    out, dtype = stage.output / "model", base.dtype if config.export.dtype == "auto" else config.export.dtype
    export_checkpoint(model, tokenizer, switch, out, card=card, short_factor=short_factor, dtype=dtype, files=pictures)
    if config.export.gguf is not None:
        export_gguf(out, out / "model.gguf", dtype=config.export.gguf)
    tracking.log_file(out / "README.md")
    stage.write_metrics({"target_length": switch.lengths[-1], "parameters": base.parameters, **cost_metrics(costs)})


if __name__ == "__main__":
    inputs = ("base.json", "checkpoints", "factors", "plots", "verdict.json", "tokens")
    run("export", export, sections=("export", "model", "corpus", "finetune", "evaluate"), inputs=inputs)
