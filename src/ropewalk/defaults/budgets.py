"""Budgets: how many candidates, documents and prompts a search and an evaluation read, by what a pass costs."""

import math
from dataclasses import dataclass

from ropewalk.defaults.known import Default, Known, Rule


@dataclass(frozen=True)
class Budget:
    """What is read where a forward pass over the target takes up to ``seconds``."""

    seconds: float
    gradient_steps: int
    trials: int
    documents: int
    passkey_trials: int


BUDGETS = (
    Budget(1, 128, 104, 8, 100),
    Budget(20, 64, 120, 4, 20),
    Budget(60, 32, 60, 4, 10),
    Budget(math.inf, 16, 16, 3, 10),
)
"""From the demo's budget to that of a day on a processor; fewer than three test documents would give no interval.
LongRoPE reads five documents and ten passkeys a length (arXiv 2402.13753, appendix A); its 1,344 candidates are not
needed after gradient steps (docs/method.md)."""
_RULER = (
    "single", "multi_key_text", "multi_value", "multi_query", "variable_tracking", "common_words", "frequent_words"
)  # fmt: skip
_CHEAP_PASS, _NEEDLE_WINDOW = 20, 1024
"""Seconds of a pass over the target up to which RULER's tasks are asked, and tokens of a window that holds them all."""
_FOLDER_DOCUMENTS = 4
"""Number of documents that are read where the text is a folder of files."""
_LARGE = 1e8
"""Number of parameters from which activations are recomputed."""


def budget(known: Known) -> tuple[Budget, str]:
    """The budget, and the reason for it."""
    seconds = known.pass_seconds(known["extension.target"])
    chosen = next(budget for budget in BUDGETS if seconds <= budget.seconds)
    return chosen, f"a pass over the target takes about {seconds:{'.0f' if seconds >= 10 else '.2g'}} s"


def _of_budget(name: str) -> Rule:
    def rule(known: Known) -> Default:
        chosen, reason = budget(known)
        return Default(getattr(chosen, name), reason)

    return rule


def _of_search(name: str) -> Rule:
    return lambda known: Default(None, f"search.{name}")


def race_blocks(known: Known) -> Default:
    """At least 32 blocks over all documents, since with fewer the race would stop no candidate early."""
    documents, stages = known["search.documents"], ("search_first", "search_second", "recover")
    fewest = min(known[f"extension.{stage}.documents"] or documents for stage in stages)
    return Default(max(8, math.ceil(32 / fewest)), f"32 blocks or more over {fewest} documents")


def second_trials(known: Known) -> Default:
    """Each length starts from the result of the one before, so that the gradient alone reaches it."""
    return Default([0] * len(known["extension.search_second.lengths"]), "the gradient alone, from the length before")


def second_steps(known: Known) -> Default:
    steps = min(24, budget(known)[0].gradient_steps)
    return Default([steps] * len(known["extension.search_second.lengths"]), budget(known)[1])


def second_documents(known: Known) -> Default:
    return Default(min(4, known["search.documents"]), "search.documents, four at most at lengths beyond the target")


def recover_trials(known: Known) -> Default:
    return Default([0] * len(known["extension.recover.lengths"]), "the gradient alone, from the extended factors")


def recover_steps(known: Known) -> Default:
    steps = min(48, budget(known)[0].gradient_steps)
    return Default([steps] * len(known["extension.recover.lengths"]), budget(known)[1])


def documents(known: Known) -> Default:
    """A folder of texts may hold a dozen long ones, of which the search, the test and training need some each."""
    chosen, reason = budget(known)
    if known["corpus.name"] == "text" and chosen.documents > _FOLDER_DOCUMENTS:
        return Default(_FOLDER_DOCUMENTS, "a folder of texts may hold few long ones")
    return Default(chosen.documents, reason)


def documents_up_to_target(known: Known) -> Default:
    chosen, reason = budget(known)
    return Default(None, reason) if chosen is BUDGETS[0] else documents(known)


def passkey_long_trials(known: Known) -> Default:
    chosen, reason = budget(known)
    return Default(min(20, chosen.passkey_trials), reason)


def needles(known: Known) -> Default:
    """RULER's tasks where they are cheap: each asks as many prompts as the passkey task on a slow device."""
    seconds, window = known.pass_seconds(known["extension.target"]), known.facts.window
    if not known.on_gpu or seconds > _CHEAP_PASS or window < _NEEDLE_WINDOW:
        return Default([], f"RULER's tasks are for GPUs that read the target in {_CHEAP_PASS} s, and larger windows")
    return Default([*_RULER], f"a GPU reads the target in about {seconds:.2g} s")


def recompute(known: Known) -> Default:
    """The inputs of all layers are kept in bf16 when activations are recomputed; a GPU also holds weights and more."""
    facts, length = known.facts, known["extension.target"]
    if facts.parameters < _LARGE:
        return Default("none", f"{facts.size}, few enough to keep activations")
    inputs = 2 * facts.layers * facts.hidden * length
    if known.on_gpu and inputs > known.memory / 8:
        return Default("offload", f"the inputs of all layers of a row take {inputs / 2**30:.0f} GiB")
    return Default("full", f"{facts.size}, too many to keep the activations of long rows")


def min_long_documents(known: Known) -> Default:
    """As many as any stage reads."""
    readers = {
        "search.documents": known["search.documents"],
        "extension.search_second.documents": known["extension.search_second.documents"] or 1,
        "evaluate.documents": known["evaluate.documents"] or 1,
        "evaluate.long_documents": known["evaluate.long_documents"] or 1,
    }
    key = max(readers, key=lambda name: readers[name])
    return Default(readers[key], key)


RULES: dict[str, Rule] = {
    "search.gradient_steps": _of_budget("gradient_steps"),
    "search.trials": _of_budget("trials"),
    "search.documents": documents,
    "search.race.blocks": race_blocks,
    "search.activation_checkpointing": recompute,
    "extension.search_first.trials": _of_search("trials"),
    "extension.search_first.gradient_steps": _of_search("gradient_steps"),
    "extension.search_first.documents": _of_search("documents"),
    "extension.recover.documents": _of_search("documents"),
    "extension.search_second.trials": second_trials,
    "extension.search_second.gradient_steps": second_steps,
    "extension.search_second.documents": second_documents,
    "extension.recover.trials": recover_trials,
    "extension.recover.gradient_steps": recover_steps,
    "evaluate.documents": documents_up_to_target,
    "evaluate.long_documents": documents,
    "evaluate.needles": needles,
    "evaluate.passkey_trials": _of_budget("passkey_trials"),
    "evaluate.passkey_long_trials": passkey_long_trials,
    "finetune.activation_checkpointing": recompute,
    "corpus.min_long_documents": min_long_documents,
}
