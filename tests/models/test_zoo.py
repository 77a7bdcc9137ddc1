"""No causal language model class of transformers goes silently wrong; docs/models.md says what works with each."""

from pathlib import Path

import pytest
import torch

from ropewalk.models.loss import hidden_states
from ropewalk.rope import rotary_shape
from zoo import REFUSED, WORKS, Outcome, examine, examine_all, faults, page, row
from zoo_models import LEFT_OUT, MODEL_TYPES, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

FEW = ["llama", "mistral", "qwen2", "qwen3", "phi3", "phi", "gemma2", "gemma3_text", "cohere", "glm4", "gpt_neox"]
FEW += ["granite", "deepseek_v3", "gpt_oss", "falcon_h1", "olmo3", "deepseek_v2", "qwen3_5"]

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("model_type", FEW)
def test_every_step_works_and_the_page_says_so(model_type: str, tmp_path: Path) -> None:
    outcomes = examine(model_type, tmp_path)
    assert {name for name, outcome in outcomes.items() if outcome.kind != WORKS} <= {"GGUF"}
    assert row(model_type, outcomes) in PAGE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gpt2", "GPT2LMHeadModel has no rotary position embedding; only RoPE models can be extended"),
        ("gptj", "GPTJForCausalLM rotates by a fixed table of sines, which has no frequencies that could be rescaled"),
        ("cohere2", "Cohere2ForCausalLM rotates only in layers that read no further than a window of 40 tokens; "),
    ],
)
def test_a_class_that_cannot_be_extended_is_refused_with_the_reason(
    model_type: str, reason: str, tmp_path: Path
) -> None:
    (outcome,) = examine(model_type, tmp_path).values()
    assert outcome.kind == REFUSED
    assert outcome.reason.startswith(reason)


def test_falcon_with_alibi_is_refused_although_it_has_a_rotary_module() -> None:
    with pytest.raises(ValueError, match=r"^FalconForCausalLM has ALiBi in place of rotary position embeddings; "):
        rotary_shape(tiny_model("falcon", alibi=True))


def test_documents_in_one_row_that_would_see_each_other_are_refused() -> None:
    rows = torch.arange(3, 35)[None]
    with pytest.raises(ValueError, match=r"^GptOssForCausalLM lets the documents of a row attend to each other; "):
        hidden_states(tiny_model("gpt_oss"), rows, position_ids=torch.arange(16).repeat(2)[None])


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Outcome]]:
    return examine_all()


@pytest.mark.slow
def test_no_class_goes_wrong_without_a_reason(outcomes: dict[str, dict[str, Outcome]]) -> None:
    assert len(outcomes) + len(LEFT_OUT) == len(MODEL_TYPES)
    assert faults(outcomes) == []


@pytest.mark.slow
def test_the_page_is_that_of_the_run(outcomes: dict[str, dict[str, Outcome]]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(outcomes)
