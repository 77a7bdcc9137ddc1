"""The real harness on local questions: its own prompts and scores, shots as in the paper, both windows."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ropewalk.evaluate.benchmarks import Questions, benchmark_row
from ropewalk.evaluate.tasks import TASKS
from ropewalk.models.base import load_model, load_tokenizer
from ropewalk.rope import LengthSwitch, RopeScaling
from tiny_benchmarks import small_benchmarks
from tiny_models import byte_tokenizer, tiny_llama
from workspace import ROOT

SWITCH = LengthSwitch(
    ((64, RopeScaling((1.0,) * 8, 64, 64)), (512, RopeScaling((2.0,) * 8, 64, 512, attention_factor=1.1)))
)


def test_without_the_harness_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"lm_eval is not installed.*pip install 'ropewalk\[bench\]'"):
        benchmark_row(tiny_llama(), byte_tokenizer(), SWITCH, Questions("mmlu"), max_length=64, batch_tokens=64)


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["mmlu", "hellaswag", "gsm8k"])
def test_every_benchmark_runs_through_the_harness_on_small_files(tmp_path: Path, benchmark: str) -> None:
    pytest.importorskip("lm_eval")
    questions = Questions(benchmark, str(small_benchmarks(tmp_path)), limit=2)
    model = tiny_llama(vocab_size=258)
    row = benchmark_row(model, byte_tokenizer(), SWITCH, questions, max_length=512, batch_tokens=2048)
    assert (row["task"], row["shots"]) == (benchmark, TASKS[benchmark].shots)
    assert row["questions"] == (4 if benchmark == "mmlu" else 2)
    assert 0 <= row["score"] <= 1
    assert "lm-evaluation-harness" in row["protocol"]
    assert 0 <= row["cut"] <= 1


@pytest.mark.slow
def test_real_questions_are_answered_by_the_walker_as_its_own_likelihoods_say(shared: Path) -> None:
    """HellaSwag without examples: the ending with the highest log probability per character, computed here."""
    pytest.importorskip("lm_eval")
    model, tokenizer = load_model(str(ROOT / "models" / "walker")), load_tokenizer(str(ROOT / "models" / "walker"))
    switch = LengthSwitch(((256, RopeScaling((1.0,) * 16, 256, 256)),))
    folder = str(shared / "data" / "benchmarks")
    row = benchmark_row(
        model,
        tokenizer,
        switch,
        Questions("hellaswag", folder, limit=12, shots=0),
        max_length=256,
        batch_tokens=1024,
    )
    from lm_eval.tasks.hellaswag.utils import preprocess

    from ropewalk.evaluate.tasks import local_tasks

    right = 0
    for entry in local_tasks("hellaswag", folder)["hellaswag"]["validation"][:12]:
        query = preprocess(f"{entry['activity_label']}: {entry['ctx_a']} ")
        scores = []
        for ending in map(preprocess, entry["endings"]):
            whole = tokenizer(f"{query} {ending}", add_special_tokens=False)["input_ids"]
            start = len(tokenizer(query, add_special_tokens=False)["input_ids"])
            ids = torch.tensor([[tokenizer.bos_token_id, *whole]])
            with torch.no_grad():
                logs = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[start:]
            scores.append(float(logs.sum()) / len(ending))
        right += max(range(4), key=scores.__getitem__) == int(entry["label"])
    assert row["score"] == pytest.approx(right / 12)
    assert (row["questions"], row["cut"], row["metric"]) == (12, 0.0, "acc_norm")
    mmlu = benchmark_row(model, tokenizer, switch, Questions("mmlu", folder, limit=1), max_length=256, batch_tokens=1)
    assert mmlu["questions"] == 19
    assert mmlu["cut"] > 0.9
    truthful: dict[str, Any] = benchmark_row(
        model, tokenizer, switch, Questions("truthfulqa_mc2", folder, limit=5), max_length=256, batch_tokens=1024
    )
    assert 0 < truthful["score"] < 1
