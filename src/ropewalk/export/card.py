"""The model card: Markdown with YAML front matter, the README.md of an exported checkpoint."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ropewalk.config import CorpusConfig
from ropewalk.evaluate.result_table import ResultTable
from ropewalk.export import markdown
from ropewalk.export.cost import AS_MEASURED, NO_N_HAT, RECOVERED, SAME, costs
from ropewalk.files import read_json
from ropewalk.models.base import BaseModel
from ropewalk.models.factors import FactorsByLength
from ropewalk.rope import LengthSwitch

Row = Mapping[str, Any]
QueryTable = Sequence[Sequence[float]]


def model_card(
    *,
    base: BaseModel,
    switch: LengthSwitch,
    perplexity_rows: Sequence[Row],
    passkey_rows: Sequence[Row],
    how_made: Mapping[str, Any],
    license_name: str | None = None,
    cost_rows: Sequence[Row] = (),
    short_factor: str = SAME,
    pictures: Mapping[str, str] | None = None,
    extended: str = "finetuned",
    query_scales: QueryTable | None = None,
    verdict: Sequence[str] = (),
) -> str:
    """Write the text of the card.

    Args:
        base: the model that was extended.
        switch: the length switch that is exported.
        perplexity_rows: rows of plots/perplexity.csv (model, method, variant, length, perplexity, documents, tokens,
            document_set, protocol), of which those of the extended model and of the plain base model are shown.
        passkey_rows: rows of plots/passkey.csv, of which those of the extended model are shown.
        how_made: steps and settings that led to the model, by label; a value may be a mapping, such as a section of
            the configuration.
        license_name: licence of the base model, which holds for the extended one too.
        cost_rows: measured rows of `ropewalk.export.cost.cost_tasks`.
        short_factor: as in `export_checkpoint`.
        pictures: description of each picture by its file name in the export.
        extended: which model of the rows is exported: finetuned, or base where no weight was changed.
        query_scales: those that the exported weights hold, by layer.
        verdict: sentences on how far the model works (`ropewalk.evaluate.verdict`).
    """
    sections = [
        _front_matter(base.name, license_name),
        f"# {base.name}, context extended from {base.window:,} to {switch.longest.target_length:,} tokens",
        _summary(base, switch, license_name, query_scales, is_trained=extended != "base"),
        " ".join(verdict),
        "## How it was made",
        "\n".join(markdown.bullets(how_made)),
        "## Figures",
        _perplexity(
            perplexity_rows, extended, "base model as it came" if base.start_switch else "base model, plain RoPE"
        ),
        _passkey(passkey_rows, extended),
        "\n\n".join(f"![{description}]({file})" for file, description in (pictures or {}).items()),
        "## Loading it",
        _loading(switch, short_factor),
        _cost(cost_rows),
        "## Limits",
        _limits(switch),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


_SHOWN_PROVENANCE = ("method", "gradient_steps", "trials", "forward_tokens", "protocol", "seed", "commit")


def how_made(results: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What led to the model, as `model_card` takes it.

    Args:
        results: folder with factors/recovered.json, which holds the provenance of the searches, and tokens/card.json,
            which holds the salt if it was chosen; it is needed to split the text again.
        settings: sections of the configuration; of the corpus, only what differs from the defaults is listed.
    """
    factors = FactorsByLength.read(results / "factors" / "recovered.json")
    data_card = read_json(results / "tokens" / "card.json")
    searches = {
        f"factors for up to {entry.up_to_length:,} tokens": {
            key.replace("_", " "): entry.provenance[key] for key in _SHOWN_PROVENANCE if key in entry.provenance
        }
        for entry in factors.entries
        if entry.provenance
    }
    defaults = asdict(CorpusConfig(name=""))
    corpus = {key: value for key, value in settings.get("corpus", {}).items() if value != defaults.get(key)}
    return {**searches, **settings, "corpus": corpus, "salt that was chosen for the split": data_card.get("salt")}


def license_of(path: str | Path) -> str | None:
    """The licence that a checkpoint's card states, None where ``path`` is no folder, or has no card that states one."""
    license_name = markdown.front_matter(Path(path) / "README.md").get("license")
    return license_name if isinstance(license_name, str) else None


def _front_matter(name: str, license_name: str | None) -> str:
    # Names are written as JSON strings, which are valid YAML whatever characters they hold.
    tags = ["ropewalk", "longrope", "long-context", "rope"]
    lines = ["library_name: transformers", "pipeline_tag: text-generation", f"base_model: {json.dumps(name)}", "tags:"]
    license_lines = [f"license: {json.dumps(license_name)}"] if license_name else []
    return "\n".join(["---", *license_lines, *lines, *(f"- {tag}" for tag in tags), "---"])


def _summary(
    base: BaseModel,
    switch: LengthSwitch,
    license_name: str | None,
    query_scales: QueryTable | None,
    *,
    is_trained: bool,
) -> str:
    last = switch.longest
    text = (
        f"A causal language model: `{base.name}` ({base.parameters:,} parameters) with its rotary position embedding "
        f"rescaled by LongRoPE's method: {len(last.factors)} factors between {min(last.factors):.3g} and "
        f"{max(last.factors):.3g}, attention factor {last.attention_factor:.4g}, n_hat {last.n_hat}."
    )
    if query_scales:
        count = sum(map(len, query_scales))
        text += (
            f" The queries of its {len(query_scales)} layers are multiplied by {count:,} learned scales, "
            f"{len(query_scales[0]):,} in each. They are folded into the weights that make the queries (`q_proj`, or "
            "the norm after it), so that any software applies them."
        )
    if not is_trained and query_scales:
        text += " No other weight was changed: only these and the scaling differ from the base model."
    elif not is_trained:
        text += " No weight was changed and nothing was trained: only the scaling differs from the base model."
    if base.weights_sha256:
        text += f" The base model's weights have sha256 `{base.weights_sha256}`."
    if base.start_switch:
        window = f"from {base.original_length:,} to {base.window:,} tokens"
        text += f" The base model came with a scaling {window}, which the factors include."
    if license_name:
        text += f" The base model's licence, `{license_name}`, holds for this one too."
    if len(switch) > 1:
        text += " It has factors of its own for short inputs:\n\n"
        rows = [
            (
                f"beyond {switch.lengths[-2]:,}" if scaling is last else f"up to {up_to:,}",
                f"{max(scaling.factors):.3g}",
                f"{scaling.attention_factor:.4g}",
                str(scaling.n_hat),
            )
            for up_to, scaling in switch
        ]
        text += markdown.table(("input length, tokens", "largest factor", "attention factor", "n_hat"), rows)
    return text


def _perplexity(rows: Sequence[Row], extended: str, base_label: str) -> str:
    labels = {("base", "none"): base_label, (extended, "ours"): "this model"}
    shown = [(labels[key], row) for row in rows if (key := (row["model"], row["method"])) in labels]
    if not shown:
        return ""
    order = list(labels.values())
    shown.sort(key=lambda entry: (str(entry[1]["document_set"]), order.index(entry[0]), int(entry[1]["length"])))
    cells = [
        (
            label,
            f"{int(row['length']):,}",
            f"{float(row['perplexity']):.2f}",
            str(row.get("variant") or ""),
            f"{int(row['documents'])} ({row['document_set']})",
            f"{int(row['tokens']):,}",
        )
        for label, row in shown
    ]
    protocols = "; ".join(dict.fromkeys(str(row["protocol"]) for _, row in shown))
    header = ("model", "length, tokens", "perplexity", "factors", "documents", "tokens scored")
    return (
        f"Perplexity on test documents. Protocol: {protocols}.\n\n{markdown.table(header, list(dict.fromkeys(cells)))}"
    )


def _passkey(rows: Sequence[Row], extended: str) -> str:
    ours = ResultTable.from_rows(rows).where(model=extended, method="ours")
    if not len(ours):
        return ""
    cells = []
    for length, table in ours.by_length().items():
        interval = table.interval(scale=100)
        published = table.where(form="published").accuracy(scale=100)
        cells.append(
            (
                f"{length:,}",
                f"{table.accuracy(scale=100):.0f} %",
                "" if interval is None else f"{interval[0]:.0f}–{interval[1]:.0f} %",
                "" if published is None else f"{published:.0f} %",
                f"{table.accuracy('likelihood_accuracy', scale=100):.0f} %",
                str(table.trials()),
            )
        )
    header = ("length, tokens", "accuracy", "95 % interval", "published form", "likelier than others", "trials")
    text = (
        "Passkey retrieval, greedy decoding, exact match, all depths together: half of the prompts in the published "
        "form, half with other keys and wordings in test documents. The likelihood of the key is compared with seven "
        "others."
    )
    return f"{text}\n\n{markdown.table(header, cells)}"


def _loading(switch: LengthSwitch, short_factor: str) -> str:
    last = switch.longest
    differences = []
    if short_factor == RECOVERED:
        differences.append(
            f"applies the factors for {last.original_length:,} tokens up to that length, with the attention factor "
            "for the longest inputs, and those for the longest inputs beyond it"
        )
    elif len(switch) > 1:
        differences.append(
            "applies the factors for the longest inputs at every length, so figures for shorter ones differ"
        )
    if last.n_hat > 0:
        differences.append(
            f"ignores n_hat = {last.n_hat} (it rescales the first positions too), so its outputs differ a little"
        )
    comparison = (
        " ".join(f"Plain transformers {difference}." for difference in differences)
        or "Both give the same outputs; ropewalk is not needed to use this model."
    )
    if short_factor == RECOVERED:
        comparison += f"""

**Warning.** This checkpoint holds two sets of factors. Most software chooses between them anew at every token and by
the longest row of a batch, and continues from a cache made with the other set: text garbles when prompt and
continuation together cross {last.original_length:,} tokens. transformers reads the input again there for Phi
models only. Use ropewalk, or export with `export.short_factor=same`."""
    return f"""With ropewalk, exactly as measured:

```python
import ropewalk
from transformers import AutoTokenizer

model = ropewalk.load_extended("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

With plain transformers (rope_type "longrope"):

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

{comparison}"""


def _cost(rows: Sequence[Row]) -> str:
    by_length = costs(rows)
    if not by_length:
        return ""
    ways = {
        AS_MEASURED: AS_MEASURED,
        NO_N_HAT: NO_N_HAT,
        SAME: "transformers, short_factor=same",
        RECOVERED: "transformers, short_factor=recovered",
    }
    cells = [
        (f"{length:,}", *(f"{by_way[way]:.2f}" if way in by_way else "" for way in ways))
        for length, by_way in by_length.items()
    ]
    table = markdown.table(("length, tokens", *ways.values()), cells)
    return f"What other software loses: perplexity on the same test documents.\n\n{table}"


def _limits(switch: LengthSwitch) -> str:
    last = switch.longest
    lines = [
        f"Made for inputs of at most {last.target_length:,} tokens, prompt and continuation together.",
        "It knows what the base model knew; a longer window adds no knowledge and no safety measures.",
        "The attention factor is part of the scaling: other software must read `attention_factor` from config.json.",
    ]
    if len(switch) > 1:
        lines.append(
            "ropewalk chooses the factors for every row of a batch by its length so far, and reads the batch again "
            "where generation crosses to the next ones; `load_extended(path, length=n)` fixes them, for prompts read "
            "in chunks and for short prompts that get long continuations."
        )
    return "\n".join(f"- {line}" for line in lines)
