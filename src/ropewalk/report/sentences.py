"""Sentences of the report: what was run, and what came out, from the configuration and the rows of its CSV files."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup

from ropewalk.evaluate.result_table import ResultTable, Row
from ropewalk.report.results import is_trained, searches, setting
from ropewalk.report.style import style
from ropewalk.report.tables import number
from ropewalk.rope.methods import baselines


def search_sentence(length: int, rows: Sequence[Row], measured: Mapping[str, Any]) -> str:
    """What one search did and gained on search documents; ``measured`` is its entry in the stage's metrics."""
    trials = [row for row in rows if row["phase"] == "evolution"]
    gradient = sum(row["phase"] == "gradient" for row in rows)
    text = f"At {length:,} tokens: "
    if not trials:
        end = measured.get("search_perplexity")
        return f"{text}{gradient} gradient steps" + (f", perplexity {number(end)} on search documents." if end else ".")
    if gradient:
        text += f"{gradient} gradient steps give the first points of the population; "
    generations = sorted({int(row["generation"]) for row in trials})
    losses = [
        (int(row["generation"]), min(float(row["loss"]), 50.0)) for row in trials if row["loss"] not in (None, "")
    ]
    start, whence = measured.get("gradient_search_perplexity"), "with the gradient's own result"
    if start is None:
        start = math.exp(min(loss for generation, loss in losses if generation == generations[0]))
        whence = "in the first generation"
    end = math.exp(min(loss for _, loss in losses))
    stopped = f", {len(trials) - len(losses)} of them stopped early," if len(losses) < len(trials) else ""
    return (
        f"{text}{len(trials)} Optuna trials{stopped} in {len(generations)} generations; perplexity on search documents "
        f"{number(start)} {whence}, {number(end)} at the end, {_change(start, end)}."
    )


def evolution_sentence(perplexity: ResultTable) -> str | None:
    """What evolution gained on test documents over the gradient's result."""
    for row in perplexity.where(method="gradient").rows():
        same = perplexity.where(method="ours", **{key: row[key] for key in ("model", "length", "documents")})
        if ours := same.best_by_length(document_set=row["document_set"]):
            start, end = row["perplexity"], ours[row["length"]]["perplexity"]
            return (
                f"What evolution gained over the gradient on test documents, at {row['length']:,} tokens: "
                f"perplexity {number(start)} with the gradient's own result, {number(end)} with the evolved factors, "
                f"{_change(start, end)}."
            )
    return None


def query_scales_sentence(scales: Sequence[Sequence[float]], *, trained: bool) -> str:
    """How many query scales were learned, between which values, and where they are."""
    numbers = [scale for row in scales for scale in row]
    where = "before the fine-tuning" if trained else "on export"
    return (
        f"Beside the factors, {len(numbers):,} query scales were learned, {len(scales[0]):,} in each of {len(scales)} "
        f"layers, between {min(numbers):.3g} and {max(numbers):.3g}. They are folded into the weights that make the "
        f"queries {where}, and apply at every length."
    )


def _change(start: float, end: float) -> str:
    percent = 100 * (end / start - 1)
    return f"{abs(percent):.1f} % {'lower' if percent <= 0 else 'higher'}"


def comparison_sentences(perplexity: ResultTable) -> list[str]:
    """Ours against the best baseline at the longest length of each model and document set."""
    sentences = []
    for model, words in (("base", "Without any training"), ("finetuned", "On the fine-tuned model")):
        for documents in sorted(perplexity.where(model=model).values("document_set")):
            ours, best = (
                perplexity.best_by_length(model=model, method=method, document_set=documents)
                for method in ("ours", baselines())
            )
            if not (shared := ours.keys() & best.keys()):
                continue
            length = max(shared)
            our, other = ours[length], best[length]
            if our["perplexity"] == other["perplexity"]:
                continue  # Composed with our factors at s=1, a baseline is our factors.
            sentences.append(
                f"{words}, at {length:,} tokens ({documents} documents): perplexity {number(our['perplexity'])} with "
                f"our factors, {number(other['perplexity'])} with the best baseline, {style(other['method'])[0]} "
                f"({other['variant']})."
            )
    return sentences


_WAYS = {
    "untrained": (
        "Extended to {target:,} tokens without training: rescale factors were searched on the base model, and no "
        "weight was changed. Up to its window the model keeps the scaling that it came with."
    ),
    "trained": (
        "Extended to {target:,} tokens: rescale factors were searched on the base model, which was then trained under "
        "them."
    ),
    "long": (
        "Extended to {target:,} tokens by a search and a training, then to {second_target:,} tokens by a second search "
        "on the trained model."
    ),
}


def run_sentences(config: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """What was run, in words; what the configuration does not say is left out."""
    get = partial(setting, config)
    name = base.get("name") or get("model.name")
    size = f", {int(base['parameters']):,} parameters" if "parameters" in base else ""
    window = base.get("window") or base.get("original_length") or get("model.original_length")
    sentences = [f"Model: {name}{size}" + (f", trained with a window of {int(window):,} tokens." if window else ".")]
    if corpus := get("corpus.name"):
        where = get("corpus.path") or get("corpus.url") or ", ".join(get("corpus.sources") or {})
        if corpus == "stdlib":
            where = "the standard library's sources of the Python that ran this"
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
    if way := _WAYS.get(get("extension.way")):
        sentences.append(way.format(**get("extension")))
    for which, title in searches(config).items():
        if lengths := get(f"extension.{which}.lengths"):
            sentences.append(f"{title}: {_budget(config, which, lengths)}.")
    trained = is_trained(config)
    for which in ("first", "second") if trained else ():
        if step := get(f"finetune.{which}"):
            sentences.append(
                f"Fine-tuning, {which} part: {step['steps']} steps of {step['batch_size']} rows of {step['length']:,} "
                f"tokens, learning rate {step['learning_rate']:g}, {step['warmup_steps']} warm-up steps."
            )
    if trained and (recall := get("finetune.recall_share")) is not None:
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
        values = setting(config, f"extension.{which}.{key}")
        return list(values) if values else [setting(config, f"search.{key}") or 0] * len(lengths)

    return "; ".join(
        f"{length:,} tokens by {steps} gradient steps and {trials} Optuna trials"
        for length, steps, trials in zip(lengths, each("gradient_steps"), each("trials"), strict=False)
    )


def _share(value: Any) -> str:
    return f"{100 * float(value or 0):.3g} %"


def data_sentences(card: Mapping[str, Any]) -> list[str]:
    """Where the texts come from, and that no document is in two splits."""
    source = f"Corpus: {card.get('corpus', 'not named')}."
    if fingerprint := card.get("fingerprint"):
        source = f"{source} Fingerprint of its source: {fingerprint}."
    salt = f" and the salt {card['salt']!r}" if card.get("salt") else ""
    sentences = [source, f"A document is in one split only; the split is by a hash of its name{salt}."]
    if card.get("across_documents"):
        sentences.append(
            "Short documents were joined until they were as long as what is read, with EOS and BOS between them: "
            "perplexity over joined documents rewards far context less than over single long ones."
        )
    return sentences
