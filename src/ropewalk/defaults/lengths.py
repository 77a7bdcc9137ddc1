"""Lengths: how far the window is extended, and where the model is searched, trained and measured."""

from ropewalk.defaults.known import Default, Known, Rule

_FACTOR = 8.0
_LONGEST_PASS = 150.0
"""Seconds that a pass may take over a length that was not asked for."""
_LONGEST_QUESTION = 256
"""Number of tokens that hold a passkey prompt without filler whatever the tokenizer, even where every byte is one."""


def factor(known: Known) -> Default:
    """LongRoPE extends a window by 8 without training (arXiv 2402.13753, section 3.2).

    Where a pass over so many tokens would take minutes, as on a processor, it is halved as often as needed, down to 2.
    """
    if known.is_given("extension.target"):
        return Default(None, "extension.target")
    value, window = _FACTOR, known.facts.window
    while value > 2 and known.pass_seconds(int(value * window)) > _LONGEST_PASS:
        value /= 2
    if value < _FACTOR:
        return Default(value, f"a pass over {_FACTOR:.0f} windows of {window:,} tokens takes minutes on this device")
    return Default(value, "as far as LongRoPE goes without training")


def target(known: Known) -> Default:
    scale, window = known["extension.factor"], known.facts.window
    return Default(round(scale * window), f"extension.factor {scale:g} times the window of {window:,}")


def second_target(known: Known) -> Default:
    """LongRoPE's second search extends by another 8 without training (arXiv 2402.13753, section 3.3)."""
    first = known["extension.target"]
    if known["extension.way"] == "long":
        return Default(8 * first, "8 times extension.target, as far as LongRoPE's second search goes")
    return Default(first, "extension.target, as only extension=long searches for more")


def first_lengths(known: Known) -> Default:
    return Default([known["extension.target"]], "extension.target")


def second_lengths(known: Known) -> Default:
    """Powers of two up to the second target, each search starting from the one before (as LongRoPE, appendix A)."""
    first, second = known["extension.target"], known["extension.second_target"]
    return Default(_doublings(first, second)[1:], "doublings from extension.target to extension.second_target")


def recovered_lengths(known: Known) -> Default:
    """Short inputs lose most inside the original window (arXiv 2402.13753, section 3.4)."""
    return Default([known.facts.window], "the window")


def measured(known: Known) -> Default:
    """The window, then doublings to the target and beyond, to show where the extension ends.

    What lies beyond the last target is left out where a pass over it would take minutes.
    """
    target, longest = known["extension.target"], known["extension.second_target"]
    reason = "the window, then doublings to the target"
    if longest == target and known.pass_seconds(2 * target) <= _LONGEST_PASS:
        longest, reason = 2 * target, f"{reason} and one beyond"
    elif longest > target:
        reason = f"{reason} and to extension.second_target"
    return Default(sorted({*_doublings(known.facts.window, target), *_doublings(target, longest)}), reason)


def measured_on_base(known: Known) -> Default:
    lengths, target = known["evaluate.lengths"], known["extension.target"]
    if known["extension.way"] == "untrained":
        return Default(lengths, "evaluate.lengths, as the base model is what is extended")
    return Default([length for length in lengths if length <= target], "evaluate.lengths up to extension.target")


def passkeys(known: Known) -> Default:
    """The same lengths; where a pass takes long, the window, the target and the longest."""
    lengths, reason = known["evaluate.lengths"], "evaluate.lengths"
    if known.pass_seconds(lengths[-1]) > 10:
        lengths = sorted({known.facts.window, known["extension.target"], lengths[-1]})
        reason = "the window, the target and the longest length, as each pass takes long"
    if lengths[0] < _LONGEST_QUESTION:
        reason += f", from {_LONGEST_QUESTION} tokens on, as shorter ones may not hold a prompt"
    return Default([length for length in lengths if length >= _LONGEST_QUESTION] or lengths[-1:], reason)


def first_trained(known: Known) -> Default:
    """LongRoPE trains at half the target before the whole (128k, then 256k; arXiv 2402.13753, section 3.3)."""
    target, window = known["extension.target"], known.facts.window
    if target // 2 <= window:
        return Default(target, "extension.target, as half of it lies in the window")
    return Default(target // 2, "half of extension.target")


def second_trained(known: Known) -> Default:
    return Default(known["extension.target"], "extension.target")


def long_tokens(known: Known) -> Default:
    longest = max(known["extension.second_target"], *known["evaluate.lengths"])
    return Default(longest, "the longest length that is read")


def train_tokens(known: Known) -> Default:
    """A row is cut from one document, and has BOS and EOS beside it."""
    if known["extension.way"] == "untrained":
        return Default(0, "extension=untrained trains nothing")
    if known["finetune.across_documents"]:
        return Default(1, "finetune.across_documents: a row goes on in the next document")
    key = f"finetune.{'second' if known['finetune.second.steps'] else 'first'}.length"
    return Default(known[key] - 2, f"{key} without BOS and EOS")


def _doublings(start: int, end: int) -> list[int]:
    """``start``, its doublings below ``end``, and ``end``."""
    lengths = []
    while start < end:
        lengths.append(start)
        start *= 2
    return [*lengths, end]


RULES: dict[str, Rule] = {
    "extension.factor": factor,
    "extension.target": target,
    "extension.second_target": second_target,
    "extension.search_first.lengths": first_lengths,
    "extension.search_second.lengths": second_lengths,
    "extension.recover.lengths": recovered_lengths,
    "evaluate.lengths": measured,
    "evaluate.base_lengths": measured_on_base,
    "evaluate.passkey_lengths": passkeys,
    "finetune.first.length": first_trained,
    "finetune.second.length": second_trained,
    "corpus.long_tokens": long_tokens,
    "corpus.train_tokens": train_tokens,
}
