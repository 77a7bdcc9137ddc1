"""Key tokens and what the far text gains: on a model that copies, where both are known beforehand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.config import EvaluateConfig
from ropewalk.evaluate.cache import Cache
from ropewalk.evaluate.compare import PerplexityTask, measure
from ropewalk.evaluate.extension import Extension
from ropewalk.evaluate.far_context import far_context_rows, key_tokens, with_key_tokens
from ropewalk.evaluate.perplexity import DocumentSet, document_losses, sliding_token_losses, whole_token_losses
from ropewalk.rope import LengthSwitch, RopeScaling, RotaryShape, methods
from tiny_models import WINDOW, token_rows

SHAPE = RotaryShape(16, 10_000.0, WINDOW)
PLAIN = RopeScaling((1.0,) * 8, WINDOW, WINDOW, method="none")
FIRST = RopeScaling((1.0, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.0), WINDOW, 4 * WINDOW, attention_factor=1.1)
CONFIG = EvaluateConfig(
    name="tiny", lengths=[WINDOW, 2 * WINDOW, 4 * WINDOW], base_lengths=[], long_documents=2, passkey_lengths=[]
)
EXTENSION = Extension(
    SHAPE, FIRST, LengthSwitch(((WINDOW, PLAIN), (4 * WINDOW, FIRST))), CONFIG, methods.compared(), extended="base"
)


@pytest.fixture
def documents() -> DocumentSet:
    return DocumentSet("all", token_rows(4 * WINDOW, 4))


def test_a_key_token_is_much_likelier_with_the_far_text_and_likely_then() -> None:
    windowed = torch.tensor([[5.0, 5.0, 3.0, 1.9, 9.0]])
    whole = torch.tensor([[2.9, 1.9, 1.5, 0.1, 0.5]])
    assert key_tokens(windowed, whole).tolist() == [[False, True, False, False, True]]


def test_losses_in_windows_and_as_a_whole_agree_as_far_as_the_first_window_reaches(
    trained: Any, documents: DocumentSet
) -> None:
    windowed = sliding_token_losses(trained, PLAIN, documents, WINDOW, stride=WINDOW // 2)
    whole = whole_token_losses(trained, PLAIN, documents, 4 * WINDOW)
    assert windowed.shape == whole.shape == (4, 4 * WINDOW - 1)
    torch.testing.assert_close(windowed[:, : WINDOW - 1], whole[:, : WINDOW - 1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(windowed, whole)
    # The second window begins at half of the first, and counts what lies beyond it.
    second = whole_token_losses(trained, PLAIN, replace(documents, rows=documents.rows[:, WINDOW // 2 :]), WINDOW)
    counted = slice(WINDOW - 1, WINDOW + WINDOW // 2 - 1)
    torch.testing.assert_close(windowed[:, counted], second[:, WINDOW // 2 - 1 :], rtol=1e-4, atol=1e-4)


def test_perplexity_on_key_tokens_is_that_of_the_marked_tokens_alone(trained: Any, documents: DocumentSet) -> None:
    marks = torch.rand((4, 4 * WINDOW - 1), generator=torch.Generator().manual_seed(0)) < 0.1
    marked = replace(documents, key_tokens=marks)
    losses = whole_token_losses(trained, FIRST, documents, 4 * WINDOW)
    of_lengths = document_losses(trained, FIRST, marked, [2 * WINDOW, 4 * WINDOW])
    for length, of_length in of_lengths.items():
        inside = marks[:, : length - 1]
        assert of_length.key_tokens == int(inside.sum())
        assert of_length.key_perplexity == pytest.approx(losses[:, : length - 1][inside].mean().exp().item(), rel=1e-6)
    assert document_losses(trained, FIRST, documents, [WINDOW])[WINDOW].key_perplexity is None


def test_figures_without_key_tokens_serve_no_one_who_asks_for_them(
    trained: Any, documents: DocumentSet, tmp_path: Path
) -> None:
    cache = Cache(tmp_path, {"base": "weights"})
    task = PerplexityTask("base", "ours", "", FIRST, 2 * WINDOW, documents)
    marked = replace(documents, key_tokens=torch.ones((4, 4 * WINDOW - 1), dtype=torch.bool))
    (plain,) = measure({"base": trained}, [task], cache=cache)
    (on_all,) = measure({"base": trained}, [replace(task, documents=marked)], cache=cache)
    assert plain.losses.key_tokens == 0
    assert on_all.losses.key_tokens == 4 * (2 * WINDOW - 1)
    assert on_all.losses.key_perplexity == pytest.approx(plain.losses.perplexity, rel=1e-6)
    # What is measured with key tokens serves both.
    for again in (documents, marked):
        (cached,) = measure({}, [replace(task, documents=again)], cache=cache)
        assert cached.losses.means == plain.losses.means
    other = replace(marked, key_tokens=torch.zeros_like(marked.key_tokens))
    with pytest.raises(KeyError):
        measure({}, [replace(task, documents=other)], cache=cache)


def test_the_judge_of_what_was_not_trained_is_yarn_and_what_is_trained_judges_itself() -> None:
    model, whole, windowed = EXTENSION.judge(4 * WINDOW)
    yarn = methods.yarn(rotary_dim=16, base=10_000.0, original_length=WINDOW, target_length=4 * WINDOW)
    assert (model, whole.factors, windowed.factors) == ("base", yarn.factors, PLAIN.factors)
    assert replace(EXTENSION, extended="finetuned").judge(4 * WINDOW) == ("finetuned", FIRST, PLAIN)


def test_rows_are_of_the_lengths_beyond_the_window_and_come_from_the_cache(
    trained: Any, documents: DocumentSet, tmp_path: Path
) -> None:
    cache, models = Cache(tmp_path, {"base": "weights"}), {"base": trained}
    rows = far_context_rows((documents, None), EXTENSION, models, cache=cache)
    assert [row["length"] for row in rows] == [2 * WINDOW, 4 * WINDOW]
    windowed = sliding_token_losses(trained, PLAIN, documents, WINDOW, stride=WINDOW // 2)
    whole = whole_token_losses(trained, FIRST, documents, 4 * WINDOW)
    gain = (windowed - whole)[:, 2 * WINDOW :].mean().item()
    assert rows[1]["gain_nats"] == pytest.approx(gain, rel=1e-5, abs=1e-7)
    assert rows[1]["low"] <= rows[1]["gain_nats"] <= rows[1]["high"]
    assert far_context_rows((documents, None), EXTENSION, {}, cache=cache) == rows
    assert far_context_rows((documents, None), replace(EXTENSION, methods=("none",)), {}) == []
    first, _ = with_key_tokens((documents, None), EXTENSION, models, cache=cache)
    again, _ = with_key_tokens((documents, None), EXTENSION, {}, cache=cache)
    assert first.key_tokens is not None
    assert again.key_tokens is not None
    assert torch.equal(first.key_tokens, again.key_tokens)
    inside, _ = with_key_tokens((replace(documents, rows=documents.rows[:, :WINDOW]), None), EXTENSION, {})
    assert inside.key_tokens is None
