"""Tables and sentences of the report, from the rows of its CSV files and the configuration."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ropewalk.report.plots import best_case
from ropewalk.report.style import Row, in_order, style

_MODELS = {"base": "base model", "finetuned": "fine-tuned"}
BASELINES = ("none", "pi", "ntk", "dynamic_ntk", "abf", "yarn")


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""
    """Set small beside the text."""
    best: bool = False


@dataclass(frozen=True)
class Table:
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """Protocol and counts, below the table."""


def number(value: float) -> str:
    if value != value:
        return "–"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str] = ()) -> Table:
    return Table(caption, tuple(header), tuple(tuple(Cell(text) for text in row) for row in rows), tuple(notes))


def perplexity_tables(rows: Sequence[Row]) -> list[Table]:
    """One table per model and document set: methods by lengths, every baseline in its best case."""
    names = {
        "base": "Base model, no training",
        "finetuned": "After fine-tuning",
        "rivals": "Each fine-tuned under its own factors, for the same steps",
        "control": "Control",
    }
    tables = []
    for model in [name for name in names if any(row["model"] == name for row in rows)]:
        for documents in sorted({str(row["document_set"]) for row in rows if row["model"] == model}):
            own = [row for row in rows if row["model"] == model and row["document_set"] == documents]
            tables.append(_perplexity_table(f"{names[model]}, {documents} documents", own))
    return tables


def with_rivals(rows: Sequence[Row]) -> list[Row]:
    """``rows`` with the models that were trained under published methods, and ours beside them, as one model."""
    rivals = [row | {"model": "rivals"} for row in rows if str(row["model"]).startswith("rival_")]
    ours = [row for row in rows if (row["model"], row["method"]) == ("finetuned", "ours")] if rivals else []
    return [*rows, *rivals, *(row | {"model": "rivals"} for row in ours)]


def _perplexity_table(caption: str, rows: Sequence[Row]) -> Table:
    lengths = sorted({int(row["length"]) for row in rows})
    methods = in_order({str(row["method"]): row for row in rows})
    best = {method: best_case(row for row in rows if row["method"] == method) for method in methods}
    lowest = {
        length: min(float(chosen[length]["perplexity"]) for chosen in best.values() if length in chosen)
        for length in lengths
    }
    body = []
    for method in methods:
        cells = [Cell(style(method)[0])]
        for length in lengths:
            row = best[method].get(length)
            if row is None:
                cells.append(Cell("–"))
                continue
            value = float(row["perplexity"])
            cells.append(Cell(number(value), str(row["variant"]), best=len(methods) > 1 and value == lowest[length]))
        body.append(tuple(cells))
    for label, key in (("documents", "documents"), ("tokens scored", "tokens")):
        counts = [sorted({int(row[key]) for row in rows if int(row["length"]) == length}) for length in lengths]
        body.append((Cell(label), *(Cell("–".join(f"{count:,}" for count in found)) for found in counts)))
    header = ("perplexity at length", *(f"{length:,}" for length in lengths))
    protocols = dict.fromkeys(str(row["protocol"]) for row in rows)
    return Table(caption, header, tuple(body), tuple(f"Protocol: {protocol}." for protocol in protocols))


def passkey_table(rows: Sequence[Row]) -> Table:
    """Accuracy by length with all depths together, one row per model and method."""
    lengths = sorted({int(row["length"]) for row in rows})
    body = []
    for model, method in dict.fromkeys((str(row["model"]), str(row["method"])) for row in rows):
        cells = [Cell(f"{_MODELS.get(model, model)}, {style(method)[0]}")]
        for length in lengths:
            own = [r for r in rows if (r["model"], r["method"], int(r["length"])) == (model, method, length)]
            trials, correct = (sum(int(row[key]) for row in own) for key in ("trials", "correct"))
            cells.append(Cell(f"{100 * correct / trials:.0f} %", f"of {trials}") if trials else Cell("–"))
        body.append(tuple(cells))
    depths = len({float(row["depth"]) for row in rows})
    notes = (
        f"A key is hidden at {depths} depths of the input and asked for at its end; greedy decoding, exact match. "
        "Keys and wordings are none of those used in training.",
    )
    return Table("Passkey accuracy, all depths together", ("", *(f"{n:,}" for n in lengths)), tuple(body), notes)


def export_table(rows: Sequence[Row]) -> Table:
    """Perplexity by length (rows) and way of applying the exported model (columns); what each loses set small."""
    ways = list(dict.fromkeys(str(row["variant"]) for row in rows))
    names = {
        "same": "transformers, short_factor=same",
        "recovered": "transformers, short_factor=recovered",
    }
    body = []
    for length in sorted({int(row["length"]) for row in rows}):
        here = {str(row["variant"]): float(row["perplexity"]) for row in rows if int(row["length"]) == length}
        whole = here[ways[0]]
        cells = [Cell(number(here[ways[0]]))]
        cells += [Cell(number(here[way]), f"{100 * (here[way] / whole - 1):+.1f} %") for way in ways[1:]]
        body.append((Cell(f"{length:,}"), *cells))
    header = ("perplexity at length", *(names.get(way, way) for way in ways))
    protocols = dict.fromkeys(str(row["protocol"]) for row in rows)
    return Table("The exported model", header, tuple(body), tuple(f"Protocol: {protocol}." for protocol in protocols))


def scaling_table(switch: Sequence[Mapping[str, Any]]) -> Table:
    """Largest factor, n_hat and attention factor of each entry of recovered.json."""
    rows = []
    for entry in switch:
        value = entry["scaling"]
        found = f"{min(value['factors']):.3g} to {max(value['factors']):.3g}"
        rows.append((f"{entry['up_to_length']:,}", found, str(value["n_hat"]), f"{value['attention_factor']:.4g}"))
    header = ("inputs up to, tokens", "factors λ", "n_hat", "attention factor t")
    return table("Our scalings by input length", header, rows)


def search_sentence(length: int, rows: Sequence[Row], measured: Mapping[str, Any]) -> str:
    """What one search did and gained on search documents; ``measured`` is its entry in the stage's metrics."""
    trials = [row for row in rows if row["phase"] == "evolution"]
    gradient = sum(row["phase"] == "gradient" for row in rows)
    text = f"At {length:,} tokens: "
    if not trials:
        end = measured.get("search_perplexity")
        return f"{text}{gradient} gradient steps" + (f", perplexity {number(end)} on search documents." if end else ".")
    if gradient:
        text += f"{gradient} gradient steps seeded the population; "
    generations = sorted({int(row["generation"]) for row in trials})
    whole = [row for row in trials if row["loss"] not in (None, "")]
    start, whence = measured.get("seed_search_perplexity"), "with the gradient's own result"
    if start is None:
        start = math.exp(min(_nats(row) for row in whole if int(row["generation"]) == generations[0]))
        whence = "in the first generation"
    end = math.exp(min(_nats(row) for row in whole))
    stopped = f", {len(trials) - len(whole)} of them stopped early," if len(whole) < len(trials) else ""
    return (
        f"{text}{len(trials)} Optuna trials{stopped} in {len(generations)} generations; perplexity on search documents "
        f"{number(start)} {whence}, {number(end)} at the end, {_change(start, end)}."
    )


def evolution_sentence(rows: Sequence[Row]) -> str | None:
    """What evolution gained on test documents over the gradient's own result, its best seed."""
    for seed in rows:
        if seed["method"] != "seed":
            continue
        same = [
            row
            for row in rows
            if row["method"] == "ours"
            and all(row[key] == seed[key] for key in ("model", "length", "document_set", "documents"))
        ]
        if same:
            start, end = (float(row["perplexity"]) for row in (seed, same[0]))
            return (
                f"What evolution gained over its seeds on test documents, at {int(seed['length']):,} tokens: "
                f"perplexity {number(start)} with the gradient's own result, {number(end)} with the evolved factors, "
                f"{_change(start, end)}."
            )
    return None


def _change(start: float, end: float) -> str:
    percent = 100 * (end / start - 1)
    return f"{abs(percent):.1f} % {'lower' if percent <= 0 else 'higher'}"


def _nats(row: Row) -> float:
    return min(float(row["loss"]), 50.0)


def comparison_sentences(rows: Sequence[Row]) -> list[str]:
    """Ours against the best baseline at the longest length of each model and document set."""
    sentences = []
    for model, words in (("base", "Without any training"), ("finetuned", "On the fine-tuned model")):
        own = [row for row in rows if row["model"] == model]
        for documents in sorted({str(row["document_set"]) for row in own}):
            here = [row for row in own if row["document_set"] == documents]
            ours = best_case(row for row in here if row["method"] == "ours")
            others = {name: best_case(row for row in here if row["method"] == name) for name in BASELINES}
            shared = [length for length in ours if any(length in found for found in others.values())]
            if not shared:
                continue
            length = max(shared)
            name = min(
                (name for name in BASELINES if length in others[name]),
                key=lambda name: float(others[name][length]["perplexity"]),
            )
            if others[name][length]["perplexity"] == ours[length]["perplexity"]:
                continue  # Composed with our factors at s=1, a baseline is our factors.
            sentences.append(
                f"{words}, at {length:,} tokens ({documents} documents): perplexity "
                f"{number(float(ours[length]['perplexity']))} with our factors, "
                f"{number(float(others[name][length]['perplexity']))} with the best baseline, {style(name)[0]} "
                f"({others[name][length]['variant']})."
            )
    return sentences


def setting(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, or None."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def run_sentences(config: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """What was run, in words; what the configuration does not say is left out."""

    def get(key: str) -> Any:
        return setting(config, key)

    name = base.get("name") or get("model.name")
    size = f", {int(base['parameters']):,} parameters" if "parameters" in base else ""
    window = base.get("window") or base.get("original_length") or get("model.original_length")
    sentences = [f"Model: {name}{size}" + (f", trained with a window of {int(window):,} tokens." if window else ".")]
    if corpus := get("corpus.name"):
        where = (
            "the standard library's sources of the Python that ran this"
            if corpus == "stdlib"
            else get("corpus.path") or get("corpus.url") or ", ".join(get("corpus.sources") or {})
        )
        sentences.append(
            f"Corpus: {corpus} ({where}); split by document into training, {_share(get('corpus.search_share'))} for "
            f"searching and {_share(get('corpus.test_share'))} for tests."
        )
        sentences.append(
            Markup(
                'What was kept and what was left out: the <a href="tokens/card.json">data card</a>, also '
                '<a href="tokens/card.png">as a plot</a>, beside this page.'
            )
        )
    if first := get("road.first_target"):
        sentences.append(f"Lengths: first target {first:,} tokens, second target {get('road.second_target'):,} tokens.")
    for which, title in (("search_first", "First search"), ("search_second", "Second search"), ("recover", "Recovery")):
        if lengths := get(f"road.{which}.lengths"):
            sentences.append(f"{title}: {_budget(config, which, lengths)}.")
    for which in ("first", "second"):
        step = get(f"finetune.{which}")
        if step:
            sentences.append(
                f"Fine-tuning, {which} part: {step['steps']} steps of {step['rows']} rows of {step['length']:,} "
                f"tokens, learning rate {step['learning_rate']:g}, {step['warmup_steps']} warm-up steps."
            )
    if (recall := get("finetune.recall_share")) is not None:
        sentences.append(
            f"Recall documents, which ask for a value given earlier, are {_share(recall)} of the fine-tuning rows; the "
            f"mean loss of their answers is added {get('finetune.answer_weight') or 0:g} times to that of all tokens."
            if recall
            else "No recall documents were used in fine-tuning."
        )
    if get("model.name") == "walker" and (recall := get("walker.recall_share")):
        sentences.append(f"Such documents were {_share(recall)} of the rows that the base model was trained on.")
    if (seed := get("seed")) is not None:
        sentences.append(f"Seed: {seed}.")
    return sentences


def _budget(config: Mapping[str, Any], which: str, lengths: Sequence[int]) -> str:
    """Gradient steps and trials at every length, as the search's own lists or the shared numbers say."""

    def each(key: str) -> list[int]:
        own = setting(config, f"road.{which}.{key}")
        return list(own) if own else [setting(config, f"search.{key}") or 0] * len(lengths)

    return "; ".join(
        f"{length:,} tokens by {steps} gradient steps and {trials} Optuna trials"
        for length, steps, trials in zip(lengths, each("gradient_steps"), each("trials"), strict=False)
    )


def _share(value: Any) -> str:
    return f"{100 * float(value or 0):.3g} %"
