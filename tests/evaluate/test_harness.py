"""The harness's model in batches: every prompt under the scaling for its own length, as when it is read alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ropewalk.rope import LengthSwitch, RopeScaling, extend
from tiny_models import WINDOW, byte_tokenizer, tiny_llama
from zoo_models import tiny_model

harness = pytest.importorskip("ropewalk.evaluate.harness", exc_type=ModuleNotFoundError)

PLAIN = RopeScaling((1.0,) * 8, WINDOW, WINDOW)
EXTENDED = RopeScaling((2.0,) * 8, WINDOW, 4 * WINDOW, attention_factor=1.1)
SWITCH = LengthSwitch(((WINDOW, PLAIN), (4 * WINDOW, EXTENDED)))
LENGTHS = (40, 62, 63, 64, 65, 66, 90, 120, 200, 300, 600)
"""Lengths of prompts inside the window of 64, beyond it, and beyond the switch and the harness's window of 512."""
MAX_LENGTH = 512
BATCH_TOKENS = 2048


def read_by_harness(batch_tokens: int, model: Any = None) -> Any:
    model = tiny_llama(vocab_size=258) if model is None else model
    return harness.BatchedModel(model, byte_tokenizer(), SWITCH, max_length=MAX_LENGTH, batch_tokens=batch_tokens)


@contextmanager
def passes(model: Any) -> Iterator[list[tuple[int, ...]]]:
    """The shapes (rows, length) of the prompts that ``model`` reads."""
    shapes: list[tuple[int, ...]] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    try:
        yield shapes
    finally:
        hook.remove()


def requests() -> list[tuple[tuple[str, str], list[int], list[int]]]:
    """(texts, context, continuation) of every length, with continuations of several lengths, in no order."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, length in enumerate(LENGTHS[::-2] + LENGTHS[-2::-2]):
        ids = torch.randint(3, 250, (length + 1,), generator=generator).tolist()
        end = -(1 + number % 3)
        found.append(((f"{length}", ""), ids[:end], ids[end:]))
        if end == -1:
            # The choices of MMLU: single tokens after one context, which the harness reads once.
            found.append(((f"{length} again", ""), ids[:end], [7]))
    return found


def test_likelihoods_in_batches_are_those_of_one_prompt_at_a_time_across_the_window() -> None:
    alone, together = read_by_harness(1), read_by_harness(BATCH_TOKENS)
    with passes(alone.model) as single:
        expected = alone._loglikelihood_tokens(requests(), disable_tqdm=True)
    harness.harmless_padding(together.model)
    with passes(together.model) as batches:
        found = together._loglikelihood_tokens(requests(), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len(single) == len(LENGTHS)
    assert len(batches) < len(single)
    assert sum(rows for rows, _ in batches) == len(LENGTHS)
    assert all(rows * length <= BATCH_TOKENS for rows, length in batches)
    # Those up to the window and those beyond it lie in different batches.
    assert max(length for _, length in batches if length <= WINDOW) == WINDOW


def test_likelihoods_in_batches_are_the_models_own_under_the_scaling_for_the_length() -> None:
    own = tiny_llama(vocab_size=258)
    found = read_by_harness(BATCH_TOKENS)._loglikelihood_tokens(requests(), disable_tqdm=True)
    for (_, context, continuation), (value, _) in zip(requests(), found, strict=True):
        ids = torch.tensor([(context + continuation)[-MAX_LENGTH - 1 :]])
        extend(own, SWITCH.for_length(ids.shape[1] - 1))
        with torch.no_grad():
            logs = own(ids[:, :-1]).logits[0].log_softmax(-1)[-len(continuation) :]
        assert value == pytest.approx(float(logs.gather(-1, torch.tensor(continuation)[:, None]).sum()), rel=1e-4)


def test_texts_written_in_batches_are_those_of_one_prompt_at_a_time_across_the_window() -> None:
    from lm_eval.api.instance import Instance

    generator = torch.Generator().manual_seed(1)
    letters = torch.randint(97, 123, (max(LENGTHS),), generator=generator).tolist()
    settings = {"until": ["\n\n"], "max_gen_toks": 24}
    instances = [
        Instance("generate_until", {}, ("".join(map(chr, letters[:length])), settings), 0)
        for length in LENGTHS
        if length < 300
    ]
    alone, together = read_by_harness(1), read_by_harness(8 * BATCH_TOKENS)
    expected = alone.generate_until(instances, disable_tqdm=True)
    harness.harmless_padding(together.model)
    with passes(together.model) as batches:
        found = together.generate_until(instances, disable_tqdm=True)
    assert found == expected
    assert batches[0][0] == len(instances)
    assert len(set(found)) > len(found) // 2


def test_a_class_whose_logits_change_with_padding_is_read_one_prompt_at_a_time() -> None:
    """DeepSeek-V4 compresses keys by their place in the row, padding included."""
    assert harness.harmless_padding(tiny_llama()) == {"left", "right"}
    model = tiny_model("deepseek_v4").eval()
    assert harness.harmless_padding(model) == {"right"}
    wrapped = object.__new__(harness.BatchedModel)
    wrapped._model, wrapped._batch_tokens = model, 1024
    assert (wrapped._rows(64, "right"), wrapped._rows(64, "left")) == (16, 1)
