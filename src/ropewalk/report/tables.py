"""Tables of the report, from the rows of its CSV files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ropewalk.evaluate.result_table import ResultTable, Row
from ropewalk.report.results import is_trained, searches, setting
from ropewalk.report.style import in_order, style, token_count

MODEL_NAMES = {"base": "base model", "finetuned": "fine-tuned"}
_TRAININGS = {"first": "Fine-tuning, first part", "second": "Fine-tuning, second part"}
_PER_TRAINED_TOKEN = 3
"""Forward tokens that a trained token costs: a forward pass, and a backward pass that costs two."""
_FORMS = {"published": "published sentences", "varied": "test documents"}
"""Forms of the passkey task, and their names in its table."""
_SPLITS = {"train": "training", "search": "search", "test": "test"}


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


def length_table(
    caption: str,
    corner: str,
    lengths: Sequence[int],
    rows: Iterable[tuple[str, Mapping[int, Cell]]],
    notes: Sequence[str] = (),
) -> Table:
    """A table with a column per length; each row is its label and the cells by length, as far as there are any."""
    body = tuple((Cell(label), *(cells.get(length, Cell("–")) for length in lengths)) for label, cells in rows)
    return Table(caption, (corner, *(f"{length:,}" for length in lengths)), body, tuple(notes))


def protocols(rows: Iterable[Row]) -> list[str]:
    """A note on each protocol that the rows were measured by."""
    return [f"Protocol: {name}." for name in dict.fromkeys(str(row["protocol"]) for row in rows if row.get("protocol"))]


def perplexity_tables(perplexity: ResultTable) -> list[Table]:
    """One table per model and document set: methods by lengths, every baseline in its best case."""
    names = {
        "base": "Base model, no training",
        "finetuned": "After fine-tuning",
        "trained_baselines": "Each fine-tuned under its own factors, for the same steps",
        "control": "Control",
    }
    return [
        _perplexity_table(f"{name}, {documents} documents", model_rows.where(document_set=documents))
        for model, name in names.items()
        for model_rows in (perplexity.where(model=model),)
        for documents in sorted(model_rows.values("document_set"))
    ]


def key_token_tables(perplexity: ResultTable) -> list[Table]:
    """The same tables on key tokens alone (LongPPL), without the control; none where no key tokens are known."""
    known = perplexity.frame.query("key_tokens > 0") if "key_tokens" in perplexity.frame else perplexity.frame[:0]
    on_keys = known.assign(perplexity=known.get("key_perplexity"), tokens=known.get("key_tokens"))
    return [
        replace(shown, caption=f"Key tokens only (LongPPL): {shown.caption[0].lower()}{shown.caption[1:]}")
        for shown in perplexity_tables(ResultTable(on_keys).where(model=("base", "finetuned")))
    ]


def far_context_table(far_context: ResultTable) -> Table:
    """What the extended model gains from the text beyond the window, by length."""
    cells = {}
    for row in far_context.rows():
        interval = f"{row['low']:.3f} to {row['high']:.3f}, " if row["low"] == row["low"] else ""
        cells[row["length"]] = Cell(f"{row['gain_nats']:.3f}", f"{interval}{row['documents']} documents")
    caption = "What the far text gains in the second half of the tokens, nats a token"
    return length_table(
        caption, "of length", far_context.lengths(), [("extended model, ours", cells)], protocols(far_context.rows())
    )


def with_trained_baselines(perplexity: ResultTable) -> ResultTable:
    """The table with the models that were trained under published methods, and ours beside them, as one more model."""
    names = [model for model in perplexity.values("model") if model.startswith("baseline_")]
    if not names:
        return perplexity
    shown = [*perplexity.where(model=tuple(names)).rows(), *perplexity.where(model="finetuned", method="ours").rows()]
    return ResultTable.from_rows([*perplexity.rows(), *(row | {"model": "trained_baselines"} for row in shown)])


def _perplexity_table(caption: str, table: ResultTable) -> Table:
    methods = in_order(dict.fromkeys(table.values("method")))
    lowest = table.best_by_length()

    def cell(length: int, row: Row) -> Cell:
        is_lowest = row["perplexity"] == lowest[length]["perplexity"]
        return Cell(number(row["perplexity"]), str(row["variant"]), best=len(methods) > 1 and is_lowest)

    def count_cells(column: str) -> dict[int, Cell]:
        counts = {length: sorted(rows.values(column)) for length, rows in table.by_length().items()}
        return {length: Cell("–".join(f"{count:,}" for count in distinct)) for length, distinct in counts.items()}

    rows = [
        (style(method)[0], {length: cell(length, row) for length, row in table.best_by_length(method=method).items()})
        for method in methods
    ]
    rows += [("documents", count_cells("documents")), ("tokens scored", count_cells("tokens"))]
    return length_table(caption, "perplexity at length", table.lengths(), rows, protocols(table.rows()))


def passkey_table(passkey: ResultTable) -> Table:
    """Accuracy by length, all depths together: for each model and method both forms, then each of them, then the
    likelihood's.
    """
    rows = []
    for (model, method), table in passkey.groups("model", "method"):
        name = f"{MODEL_NAMES.get(model, model)}, {style(method)[0]}"
        rows += [
            (name, _passkey_cells(table)),
            *((f"– {label}", _passkey_cells(table.where(form=form))) for form, label in _FORMS.items()),
            ("– likelier than others", _passkey_cells(table, "likelihood_accuracy")),
        ]
    notes = [
        "A key is hidden in the input, at a place drawn within each of "
        f"{len(passkey.values('depth'))} bands of depth, and asked for at its end; greedy decoding, exact match. "
        "Half of the prompts repeat the published sentences around five digits; the others hide keys of several kinds, "
        "in several wordings, in test documents. Keys and wordings are none of those used in training.",
        "In small print the 95 % interval, by bootstrap over test documents and over the published form's bands of "
        "depth, and the number of trials. Likelier than others: the right key has a higher likelihood than each of "
        "seven that differ from it in one digit or word.",
    ]
    return length_table("Passkey accuracy, all depths together", "", passkey.lengths(), rows, notes)


def depth_table(passkey: ResultTable) -> Table:
    """Accuracy of the extended model by length and by the third of the input that the key stands in."""
    extended = "finetuned" if "finetuned" in passkey.values("model") else "base"
    ours = passkey.where(model=extended, method="ours")
    depths = ours.frame["depth"].astype(float)
    thirds = {"first third": depths < 1 / 3, "middle third": depths.between(1 / 3, 2 / 3), "last third": depths > 2 / 3}
    rows = [(name, _passkey_cells(ResultTable(ours.frame[inside]))) for name, inside in thirds.items()]
    return length_table("Passkey accuracy of ours by depth, both forms", "key in the", ours.lengths(), rows)


def _passkey_cells(table: ResultTable, score: str = "accuracy") -> dict[int, Cell]:
    cells = {}
    for length, at_length in table.by_length().items():
        interval = at_length.interval(score, scale=100)
        interval_text = "" if interval is None else f"{interval[0]:.0f}–{interval[1]:.0f} % "
        cells[length] = Cell(f"{at_length.accuracy(score, scale=100):.0f} %", f"{interval_text}of {at_length.trials()}")
    return cells


def export_table(rows: Sequence[Row]) -> Table:
    """Perplexity by length (rows) and way of applying the exported model (columns); what each loses set small."""
    ways = list(dict.fromkeys(str(row["variant"]) for row in rows))
    names = {way: f"transformers, short_factor={way}" for way in ("same", "recovered")}
    body = []
    for length in sorted({int(row["length"]) for row in rows}):
        here = {str(row["variant"]): float(row["perplexity"]) for row in rows if int(row["length"]) == length}
        whole = here[ways[0]]
        cells = [Cell(number(whole))]
        cells += [Cell(number(here[way]), f"{100 * (here[way] / whole - 1):+.1f} %") for way in ways[1:]]
        body.append((Cell(f"{length:,}"), *cells))
    header = ("perplexity at length", *(names.get(way, way) for way in ways))
    return Table("The exported model", header, tuple(body), tuple(protocols(rows)))


def scaling_table(switch: Sequence[Mapping[str, Any]]) -> Table:
    """Largest factor, n_hat and attention factor of each entry of recovered.json."""
    rows = []
    for entry in switch:
        value = entry["scaling"]
        factors = f"{min(value['factors']):.3g} to {max(value['factors']):.3g}"
        rows.append((f"{entry['up_to_length']:,}", factors, str(value["n_hat"]), f"{value['attention_factor']:.4g}"))
    header = ("inputs up to, tokens", "factors λ", "n_hat", "attention factor t")
    return table("Our scalings by input length", header, rows)


def data_tables(card: Mapping[str, Any]) -> list[Table]:
    """Counts of each split, documents by length, tokens by subset, and what was left out."""
    splits = [split for split in _SPLITS if isinstance(card.get(split), Mapping)]
    names = [_SPLITS[split] for split in splits]
    keys = {
        "documents": "documents", "tokens": "tokens", "longest": "tokens in the longest",
        "long_documents": "documents of the longest length read",
    }  # fmt: skip
    if any("joined_documents" in card[split] for split in splits):
        keys["joined_documents"] = "documents joined from short ones"
    counts = [
        (label, *(f"{int(card[split][key]):,}" if key in card[split] else "–" for split in splits))
        for key, label in keys.items()
    ]
    counts.append(("hash of the tokens", *(str(card[split].get("hash", "–"))[:12] for split in splits)))
    tables = [table("Splits, by document", ("", *names), counts)]
    for key, caption, head in (
        ("documents_from_tokens", "Documents by length", "tokens, at least"),
        ("tokens_by_subset", "Tokens by subset", "subset"),
    ):
        labels = list(dict.fromkeys(label for split in splits for label in card[split].get(key, {})))
        if key == "documents_from_tokens":
            labels = sorted(labels, key=int)
        if len(labels) > 1:
            body = []
            for label in labels:
                counts_of_label = (f"{int(card[split].get(key, {}).get(label, 0)):,}" for split in splits)
                body.append((f"{int(label):,}" if label.isdigit() else label, *counts_of_label))
            tables.append(table(caption, (head, *names), body))
    lost = {
        f"{kind}: {reason}": count
        for kind in ("rejected", "dropped")
        for reason, count in (card.get(kind) or {}).items()
        if count
    }
    if lost:
        tables.append(table("Left out", ("reason", "rows"), [(reason, f"{n:,}") for reason, n in lost.items()]))
    return tables


def cost_table(metrics: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Table | None:
    """Steps, trials and forward tokens of each search and training, from the files in ``metrics/`` by stage."""
    body: list[tuple[str, ...]] = []
    paid: list[float] = []
    for stage, title in searches(config).items():
        for key, search in metrics.get(stage, {}).items():
            if not key.startswith("at_") or not isinstance(search, Mapping) or "forward_tokens" not in search:
                continue
            start, end = search.get("gradient_search_perplexity"), search.get("search_perplexity")
            gain = f"{number(start)} → {number(end)}" if start and end and start != end else number(end or float("nan"))
            length = int(key.removeprefix("at_"))
            steps, trials = (f"{search.get(key, 0):,}" for key in ("gradient_steps", "trials"))
            body.append((f"{title}, {length:,} tokens", steps, trials, gain))
            paid.append(float(search["forward_tokens"]))
    for part, title in _TRAININGS.items() if is_trained(config) else ():
        step = setting(config, f"finetune.{part}")
        if isinstance(step, Mapping) and {"steps", "batch_size", "length"} <= set(step):
            body.append((f"{title}, {step['length']:,} tokens", f"{step['steps']:,}", "–", "–"))
            paid.append(float(_PER_TRAINED_TOKEN * step["steps"] * step["batch_size"] * step["length"]))
    if not paid:
        return None
    whole = sum(paid)
    shares = [f"{100 * cost / whole:.0f} %" if cost / whole >= 0.005 else "< 1 %" for cost in paid]
    rows = [(*row, token_count(cost), share) for row, cost, share in zip(body, paid, shares, strict=True)]
    steps = "gradient or optimizer steps" if is_trained(config) else "gradient steps"
    header = ("", steps, "trials", "perplexity, search documents", "forward tokens", "share")
    note = (
        "A backward pass counts as two forward passes. The perplexity is that of the gradient's result and that after "
        "the trials, or of the end alone."
    )
    caption = "Cost of the searches beside that of fine-tuning" if is_trained(config) else "Cost of the search"
    return table(caption, header, rows, (note,))
