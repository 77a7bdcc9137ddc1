"""Stage export: the extended model as a transformers checkpoint with its model card."""

from ropewalk import tracking
from ropewalk.export.card import model_card
from ropewalk.export.checkpoint import export_checkpoint
from ropewalk.files import read_json, read_table
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.rope import switch_from_json
from ropewalk.stage import Stage, run


def export(stage: Stage) -> None:
    config = stage.config
    base = read_json(stage.inputs / "base.json")
    switch = switch_from_json((stage.inputs / "factors" / "recovered.json").read_text())
    folder = stage.inputs / "checkpoints" / "finetune_second"
    card = model_card(
        base=base,
        switch=switch,
        perplexity_rows=read_table(stage.inputs / "plots" / "perplexity.csv"),
        passkey_rows=read_table(stage.inputs / "plots" / "passkey.csv"),
        how_made=stage.values("corpus", "finetune"),
    )
    model = load_model(str(folder), dtype=config.model.dtype)
    out = stage.output / "model"
    export_checkpoint(model, load_tokenizer(str(folder)), switch, out, card=card)
    tracking.log_file(out / "README.md")
    stage.write_metrics({"target_length": switch[-1][0], "parameters": base["parameters"]})


if __name__ == "__main__":
    needed = ("base.json", "checkpoints", "factors", "plots/perplexity.csv", "plots/passkey.csv")
    run("export", export, sections=("export", "model", "corpus", "finetune"), inputs=needed)
