"""The model card: markdown with YAML front matter, written as the README.md of an exported checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ropewalk.export.cost import AS_MEASURED, NO_N_HAT, RECOVERED, SAME, costs
from ropewalk.rope.scaling import LengthSwitch

Row = Mapping[str, Any]


def model_card(
    *,
    base: Mapping[str, Any],
    switch: LengthSwitch,
    perplexity_rows: Sequence[Row],
    passkey_rows: Sequence[Row],
    how_made: Mapping[str, Any],
    cost_rows: Sequence[Row] = (),
    short_factor: str = SAME,
    pictures: Mapping[str, str] | None = None,
) -> str:
    """Text of the card.

    Args:
        base: base.json of the run: name, original_length and, if known, parameters, weights_sha256 and license.
        switch: the length switch that is exported.
        perplexity_rows: rows of plots/perplexity.csv (model, method, variant, length, perplexity, documents, tokens,
            document_set, protocol); those of the extended model under its own factors are shown beside the base
            model's plain ones.
        passkey_rows: rows of plots/passkey.csv (model, method, length, depth, trials, correct).
        how_made: what was done, as label and value, in order; a value may be a mapping, such as a section of the
            configuration.
        cost_rows: measured rows of `ropewalk.export.cost.cost_readings`.
        short_factor: as given to `export_checkpoint`.
        pictures: file names beside the card, with what each shows.
    """
    last = switch[-1][1]
    name = str(base["name"])
    window = int(base.get("window", last.original_length))
    sections = [
        _front_matter(name, base.get("license")),
        f"# {name}, context extended from {window:,} to {last.target_length:,} tokens",
        _what(base, switch),
        "## How it was made",
        "\n".join(_bullets(how_made)),
        "## Figures",
        _perplexity(perplexity_rows, "base model as it came" if "start" in base else "base model, plain RoPE"),
        _passkey(passkey_rows),
        "\n\n".join(f"![{what}]({file})" for file, what in (pictures or {}).items()),
        "## Loading it",
        _loading(switch, short_factor),
        _cost(cost_rows),
        "## Limits",
        _limits(switch),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


_OF_A_SEARCH = ("method", "gradient_steps", "trials", "forward_tokens", "protocol", "seed", "commit")


def searches(factors: Mapping[str, Any]) -> dict[str, Any]:
    """For ``how_made``: what recovered.json says of the search behind each of its scalings."""
    return {
        f"factors for up to {int(entry['up_to_length']):,} tokens": {
            key.replace("_", " "): entry["provenance"][key] for key in _OF_A_SEARCH if key in entry["provenance"]
        }
        for entry in factors["switch"]
        if entry.get("provenance")
    }


def license_of(path: str | Path) -> str | None:
    """The licence that the card of a checkpoint in a folder states, None where there is no such folder or line."""
    card = Path(path) / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    found = values.get("license") if isinstance(values, dict) else None
    return found if isinstance(found, str) else None


def _front_matter(name: str, license_name: str | None) -> str:
    # Names go in as JSON strings, which are YAML strings whatever they hold.
    tags = ["ropewalk", "longrope", "long-context", "rope"]
    lines = ["library_name: transformers", "pipeline_tag: text-generation", f"base_model: {json.dumps(name)}", "tags:"]
    license_lines = [f"license: {json.dumps(license_name)}"] if license_name else []
    return "\n".join(["---", *license_lines, *lines, *(f"- {tag}" for tag in tags), "---"])


def _bullets(values: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for label, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}- {label}:", *_bullets(value, indent + "  ")]
        elif value not in (None, "", [], {}):
            lines.append(f"{indent}- {label}: {value}")
    return lines


def _what(base: Mapping[str, Any], switch: LengthSwitch) -> str:
    last = switch[-1][1]
    size = f" ({int(base['parameters']):,} parameters)" if base.get("parameters") else ""
    text = (
        f"A causal language model: `{base['name']}`{size} with its rotary position embedding rescaled by LongRoPE's "
        f"method: {len(last.factors)} factors between {min(last.factors):.3g} and {max(last.factors):.3g}, "
        f"attention factor {last.attention_factor:.4g}, n_hat {last.n_hat}."
    )
    if base.get("weights_sha256"):
        text += f" The base model's weights have sha256 `{base['weights_sha256']}`."
    if "start" in base:
        own = f"from {last.original_length:,} to {base['window']:,} tokens"
        text += f" The base model came with a scaling {own}, which the factors include."
    if base.get("license"):
        text += f" The base model's licence, `{base['license']}`, holds for this one too."
    if len(switch) > 1:
        text += " It has factors of its own for short inputs:\n\n"
        rows = [
            (
                f"{'beyond' if scaling is last else 'up to'} {_bound(switch, index):,}",
                f"{max(scaling.factors):.3g}",
                f"{scaling.attention_factor:.4g}",
                str(scaling.n_hat),
            )
            for index, (_, scaling) in enumerate(switch)
        ]
        text += _table(("input length, tokens", "largest factor", "attention factor", "n_hat"), rows)
    return text


def _bound(switch: LengthSwitch, index: int) -> int:
    return switch[index][0] if index < len(switch) - 1 else switch[index - 1][0]


def _perplexity(rows: Sequence[Row], base_label: str) -> str:
    shown = [row for row in rows if (row["model"], row["method"]) in (("base", "none"), ("finetuned", "ours"))]
    if not shown:
        return ""
    order = {"base": 0, "finetuned": 1}
    shown.sort(key=lambda row: (str(row["document_set"]), order[row["model"]], int(row["length"])))
    labels = {"base": base_label, "finetuned": "this model"}
    cells = [
        (
            labels[row["model"]],
            f"{int(row['length']):,}",
            f"{float(row['perplexity']):.2f}",
            str(row.get("variant") or ""),
            f"{int(row['documents'])} ({row['document_set']})",
            f"{int(row['tokens']):,}",
        )
        for row in shown
    ]
    protocols = "; ".join(dict.fromkeys(str(row["protocol"]) for row in shown))
    header = ("model", "length, tokens", "perplexity", "factors", "documents", "tokens scored")
    return f"Perplexity on test documents. Protocol: {protocols}.\n\n{_table(header, list(dict.fromkeys(cells)))}"


def _passkey(rows: Sequence[Row]) -> str:
    totals: dict[int, list[int]] = {}
    for row in rows:
        if (row["model"], row["method"]) == ("finetuned", "ours"):
            total = totals.setdefault(int(row["length"]), [0, 0])
            total[0] += int(row["trials"])
            total[1] += int(row["correct"])
    if not totals:
        return ""
    cells = [
        (f"{length:,}", f"{100 * correct / trials:.0f} %", str(trials))
        for length, (trials, correct) in sorted(totals.items())
        if trials
    ]
    header = ("length, tokens", "accuracy", "trials")
    return f"Passkey retrieval, greedy decoding, exact match, all depths together.\n\n{_table(header, cells)}"


def _loading(switch: LengthSwitch, short_factor: str) -> str:
    last = switch[-1][1]
    differs = []
    if short_factor == RECOVERED:
        differs.append(
            f"applies the factors for {last.original_length:,} tokens up to that length, with the attention factor "
            "for the longest inputs, and those for the longest inputs beyond it"
        )
    elif len(switch) > 1:
        differs.append("applies the factors for the longest inputs at every length, so figures for shorter ones differ")
    if last.n_hat > 0:
        differs.append(
            f"ignores n_hat = {last.n_hat} (it rescales the first positions too), so its outputs differ a little"
        )
    difference = (
        " ".join(f"Plain transformers {point}." for point in differs)
        or "Both give the same outputs; ropewalk is not needed to use this model."
    )
    if short_factor == RECOVERED:
        difference += f"""

**Warning.** This checkpoint holds two sets of factors. Most software chooses between them anew at every token and by
the longest row of a batch, and goes on from a cache made with the other set: text garbles when prompt and continuation
together cross {last.original_length:,} tokens. transformers reads the input again there for Phi models only. Use
ropewalk, or export with `export.short_factor=same`."""
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

{difference}"""


def _cost(rows: Sequence[Row]) -> str:
    found = costs(rows)
    if not found:
        return ""
    ways = {
        AS_MEASURED: AS_MEASURED,
        NO_N_HAT: NO_N_HAT,
        SAME: "transformers, short_factor=same",
        RECOVERED: "transformers, short_factor=recovered",
    }
    cells = [
        (f"{length:,}", *(f"{by_way[way]:.2f}" if way in by_way else "" for way in ways))
        for length, by_way in found.items()
    ]
    table = _table(("length, tokens", *ways.values()), cells)
    return f"What other software loses: perplexity on the same test documents.\n\n{table}"


def _limits(switch: LengthSwitch) -> str:
    last = switch[-1][1]
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


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
