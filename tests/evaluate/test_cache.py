"""What was measured is kept: after a kill, for another method, and for nothing that differs."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import fork_until_killed, kill_self
from ropewalk.evaluate import compare
from ropewalk.evaluate.cache import Cache, model_cache, scaling_key, tokenizer_hash, weights_hash
from ropewalk.evaluate.compare import PerplexityTask, measure
from ropewalk.evaluate.perplexity import DocumentSet, document_losses
from ropewalk.rope import RopeScaling
from tiny_models import byte_tokenizer, tiny_llama, tiny_rounding, token_rows
from tolerances import relative_error

pytestmark = pytest.mark.numeric

SCALINGS = {s: RopeScaling((float(s),) * 8, 64, 64 * s) for s in (1, 2, 3, 4)}
DOCUMENTS = DocumentSet("all", token_rows(100, 3))


def tasks(
    *numbers: int, documents: DocumentSet = DOCUMENTS, lengths: tuple[int, ...] = (64, 100)
) -> list[PerplexityTask]:
    return [PerplexityTask("m", f"s{s}", "", SCALINGS[s], length, documents) for s in numbers for length in lengths]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, list[int], int]]:
    """(s, lengths, documents) of every pass that is paid for."""
    paid: list[tuple[float, list[int], int]] = []

    def noted(model: Any, scaling: RopeScaling, documents: DocumentSet, lengths: list[int], **more: Any) -> Any:
        paid.append((scaling.factors[0], lengths, documents.documents))
        return document_losses(model, scaling, documents, lengths, **more)

    monkeypatch.setattr(compare, "document_losses", noted)
    return paid


def test_a_killed_evaluation_resumes_and_a_new_method_alone_is_measured(
    tmp_path: Path, passes: list[tuple[float, list[int], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = tiny_llama(), Cache(tmp_path, {"m": "weights"})
    undisturbed = [result.losses for result in measure({"m": model}, tasks(1, 2, 3))]
    passes.clear()

    def until_killed() -> None:
        torch.set_num_threads(1)
        counted = compare.document_losses

        def third_kills(*arguments: Any, **more: Any) -> Any:
            if len(passes) == 2:
                kill_self()
            return counted(*arguments, **more)

        compare.document_losses = third_kills
        measure({"m": model}, tasks(1, 2, 3), cache=cache)

    fork_until_killed(until_killed)
    resumed = measure({"m": model}, tasks(1, 2, 3), cache=cache)
    assert passes == [(3.0, [64, 100], 3)]
    assert [result.losses for result in resumed] == undisturbed
    measure({"m": model}, tasks(4, 2, 1, 3), cache=cache)
    assert passes[1:] == [(4.0, [64, 100], 3)]


def test_only_what_differs_is_measured_again(tmp_path: Path, passes: list[tuple[float, list[int], int]]) -> None:
    model, cache = tiny_llama(), Cache(tmp_path, {"m": "weights"})

    def paid(*numbers: int, cache: Cache = cache, **more: Any) -> list[tuple[float, list[int], int]]:
        passes.clear()
        measure({"m": model}, tasks(*numbers, **more), cache=cache)
        return list(passes)

    assert paid(1) == [(1.0, [64, 100], 3)]
    assert paid(1) == []
    assert paid(1, lengths=(50, 64)) == [(1.0, [50], 3)]
    other = DocumentSet("all", DOCUMENTS.rows.roll(1, 1))
    assert paid(1, documents=other) == [(1.0, [64, 100], 3)]
    assert paid(1, cache=replace(cache, weights={"m": "trained on"})) == [(1.0, [64, 100], 3)]
    assert paid(1, cache=Cache()) == [(1.0, [64, 100], 3)]
    # A document that lies after token 64 alone changes nothing before it.
    late = DOCUMENTS.rows.clone()
    late[:, 80] = 5
    assert paid(1, documents=DocumentSet("all", late)) == [(1.0, [100], 3)]


def test_long_documents_are_kept_one_by_one(tmp_path: Path, passes: list[tuple[float, list[int], int]]) -> None:
    model, cache = tiny_llama(), Cache(tmp_path, {"m": "weights"})
    two = DocumentSet("all", DOCUMENTS.rows[:2])
    measure({"m": model}, tasks(1, documents=two), cache=cache, chunk=40)
    results = measure({"m": model}, tasks(1), cache=cache, chunk=40)
    assert passes == [(1.0, [64, 100], 1)] * 3
    whole = measure({"m": model}, tasks(1))
    for part, whole_result in zip(results, whole, strict=True):
        assert relative_error(part.losses.means, whole_result.losses.means) < tiny_rounding(100)


def test_processes_share_the_work_and_leave_what_another_is_at(
    tmp_path: Path, passes: list[tuple[float, list[int], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache", {"m": "weights"}, turns=tmp_path / "turns")
    undisturbed = [result.losses for result in measure({"m": tiny_llama()}, tasks(1, 2, 3))]
    passes.clear()
    has_started, rest_done = multiprocessing.Event(), multiprocessing.Event()

    def first() -> None:
        """At the first task until all others are done."""
        torch.set_num_threads(1)
        counted = compare.document_losses

        def late(*arguments: Any, **more: Any) -> Any:
            has_started.set()
            assert rest_done.wait(60)
            return counted(*arguments, **more)

        compare.document_losses = late
        measure({"m": tiny_llama()}, tasks(1, 2, 3), cache=cache)
        assert passes == [(1.0, [64, 100], 3)]

    process = multiprocessing.get_context("fork").Process(target=first)
    process.start()
    assert has_started.wait(60)
    put = Cache.put

    def counted(*what: Any) -> None:
        put(*what)
        if len(passes) == 2:
            rest_done.set()

    monkeypatch.setattr(Cache, "put", counted)
    assert [result.losses for result in measure({"m": tiny_llama()}, tasks(1, 2, 3), cache=cache)] == undisturbed
    assert [s for s, _, _ in passes] == [2.0, 3.0]
    process.join(60)
    assert process.exitcode == 0


def test_the_work_of_a_process_that_is_killed_is_done_by_another(
    tmp_path: Path, passes: list[tuple[float, list[int], int]]
) -> None:
    cache = Cache(tmp_path / "cache", {"m": "weights"}, turns=tmp_path / "turns")

    def until_killed() -> None:
        compare.document_losses = lambda *arguments, **more: kill_self()
        measure({"m": tiny_llama()}, tasks(1, 2), cache=cache)

    fork_until_killed(until_killed)
    measure({"m": tiny_llama()}, tasks(1, 2), cache=cache)
    assert [s for s, _, _ in passes] == [1.0, 2.0]


def test_a_damaged_entry_is_measured_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, {"m": "weights"})
    assert cache.get_or_measure("m", {"task": "a"}, lambda: [1.5]) == [1.5]
    (file,) = tmp_path.rglob("*.json")
    assert cache.get_or_measure("m", {"task": "a"}, lambda: [2.5]) == [1.5]
    file.write_text('{"figure"')
    assert cache.get_or_measure("m", {"task": "a"}, lambda: [2.5]) == [2.5]
    assert cache.get("m", {"task": "a"}) == [2.5]


def test_weights_scalings_and_tokenizers_have_hashes_of_their_own(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "one")
    same = model_cache(str(tmp_path / "cache"), {"m": str(tmp_path / "one")}, dtype="float32").weights["m"]
    assert same == weights_hash(tmp_path / "one", dtype="float32")
    with torch.no_grad():
        model.lm_head.weight[0] += 1
    model.save_pretrained(tmp_path / "two")
    assert weights_hash(tmp_path / "two", dtype="float32") != same
    assert weights_hash(tmp_path / "one", dtype="bfloat16") != same
    assert model_cache(None, {}, dtype="float32").folder is None
    first, second = SCALINGS[1], SCALINGS[2]
    assert scaling_key(first) == scaling_key(replace(first, target_length=128, method="pi")) != scaling_key(second)
    assert scaling_key(((64, first), (128, second))) != scaling_key(((32, first), (128, second)))
    longer = byte_tokenizer()
    longer.add_tokens(["12"])
    assert tokenizer_hash(byte_tokenizer()) != tokenizer_hash(longer)
