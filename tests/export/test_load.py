"""load_extended applies the switch exactly, in single passes and in generation, and refuses what is not an export."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ropewalk
from ropewalk.export import export_checkpoint
from ropewalk.rope import current_scaling, extend
from tiny_models import WINDOW, tiny_rounding, token_rows
from tolerances import relative_error

from .conftest import long_switch_for, switch_for

pytestmark = pytest.mark.numeric

GREEDY: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
BOUNDARY = 2 * WINDOW


@pytest.fixture
def exported(model: Any, tokenizer: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    export_checkpoint(model, tokenizer, switch_for(model, n_hat=6), folder, card="card")
    return folder


@pytest.fixture
def exported_llama(llama: Any, tokenizer: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    export_checkpoint(llama, tokenizer, switch_for(llama, n_hat=6), folder, card="card")
    return folder


def test_logits_are_exactly_those_of_the_scaling_for_each_length(model: Any, exported: Path) -> None:
    switch = switch_for(model, n_hat=6)
    loaded = ropewalk.load_extended(exported).eval()
    for length in (BOUNDARY + 1, 5, WINDOW, BOUNDARY, 4 * WINDOW, 8 * WINDOW):
        ids = token_rows(length, rows=1)
        with torch.no_grad():
            ours = extend(model, switch.for_length(length))(ids).logits
            assert torch.equal(loaded(ids).logits, ours), length


def recomputed(model: Any, switch: Any, prompt: torch.Tensor, *, tokens: int) -> list[int]:
    """Greedy tokens after one prompt, each from a pass over all before it under the scaling for so many."""
    ids = prompt.clone()
    for _ in range(tokens):
        with torch.no_grad():
            logits = extend(model, switch.for_length(ids.shape[1]))(ids).logits
        logits[..., 1] = -torch.inf  # </s>, which min_new_tokens forbids
        ids = torch.cat((ids, logits[:, -1:].argmax(-1)), dim=1)
    return ids[0, prompt.shape[1] :].tolist()


def padded(prompts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch of prompts of unequal lengths, padded on the left."""
    width = max(prompt.shape[1] for prompt in prompts)
    gaps = [width - prompt.shape[1] for prompt in prompts]
    ids = [torch.nn.functional.pad(prompt, (gap, 0), value=2) for prompt, gap in zip(prompts, gaps, strict=True)]
    mask = torch.stack([(torch.arange(width) >= gap).long() for gap in gaps])
    return {"input_ids": torch.cat(ids), "attention_mask": mask}


@pytest.mark.parametrize("boundary", [WINDOW // 2, WINDOW, 2 * WINDOW])
def test_cached_generation_in_unequal_rows_is_full_recomputation_around_every_boundary(
    model: Any, tokenizer: Any, tmp_path: Path, boundary: int
) -> None:
    switch = long_switch_for(model)
    export_checkpoint(model, tokenizer, switch, tmp_path / "model", card="")
    loaded = ropewalk.load_extended(tmp_path / "model").eval()
    # Far below, close below, at and one above the boundary.
    lengths = (boundary // 2, boundary - 4, boundary, boundary + 1)
    prompts = [token_rows(length, rows=1) for length in lengths]
    few = {**GREEDY, "max_new_tokens": 8, "min_new_tokens": 8}
    expected = [recomputed(model, switch, prompt, tokens=8) for prompt in prompts]
    batch = padded(prompts)
    together = loaded.generate(**batch, **few)[:, batch["input_ids"].shape[1] :]
    assert together.tolist() == expected
    # The tokens do depend on the scaling, so that this could fail.
    fixed = ropewalk.load_extended(tmp_path / "model", length=8 * WINDOW).eval().generate(**batch, **few)
    assert fixed[:, batch["input_ids"].shape[1] :].tolist() != expected


def test_a_cache_is_used_between_the_boundaries(llama: Any, exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    widths: list[int] = []
    loaded.model.register_forward_pre_hook(
        lambda _, __, options: widths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    start = BOUNDARY - 5
    loaded.generate(token_rows(start, rows=1), **GREEDY)
    # One prefill, and one more where token BOUNDARY + 1 is read.
    assert widths == [start, *(1,) * 5, BOUNDARY + 1, *(1,) * 5]


def test_rows_padded_on_either_side_get_the_logits_that_they_have_alone(llama: Any, exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    prompts = [token_rows(length, rows=1) for length in (9, BOUNDARY, BOUNDARY + 1)]
    width = BOUNDARY + 1
    with torch.no_grad():
        alone = [loaded(prompt).logits[0] for prompt in prompts]
        left = padded(prompts)
        on_left = loaded(**left).logits
        ids = torch.cat([torch.nn.functional.pad(prompt, (0, width - prompt.shape[1])) for prompt in prompts])
        mask = torch.stack([(torch.arange(width) < prompt.shape[1]).long() for prompt in prompts])
        on_right = loaded(ids, attention_mask=mask).logits
    for row, expected in enumerate(alone):
        assert relative_error(on_left[row, width - len(expected) :], expected) < tiny_rounding(width)
        assert relative_error(on_right[row, : len(expected)], expected) < tiny_rounding(width)


def test_rows_of_different_scalings_cannot_continue_as_others(exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    with torch.no_grad():
        output = loaded(**padded([token_rows(5, rows=1), token_rows(BOUNDARY + 1, rows=1)]), use_cache=True)
        output.cache.batch_repeat_interleave(2)
        with pytest.raises(ValueError, match="4 rows continue inputs that began as 2 rows"):
            loaded(torch.tensor([[5]] * 4), cache=output.cache)


def test_an_extended_model_is_saved_under_its_own_name(exported_llama: Path, tmp_path: Path) -> None:
    ropewalk.load_extended(exported_llama).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_cached_steps_across_a_boundary_give_the_logits_of_one_pass_under_one_scaling(
    llama: Any, exported_llama: Path
) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    ids = token_rows(BOUNDARY + 6, rows=1)
    start = BOUNDARY - 3
    with torch.no_grad():
        output = loaded(ids[:, :start], use_cache=True)
        steps = [output.logits]
        for position in range(start, ids.shape[1]):
            output = loaded(ids[:, position : position + 1], past_key_values=output.past_key_values, use_cache=True)
            steps.append(output.logits)
        expected = extend(llama, switch_for(llama, n_hat=6).scalings[0])(ids).logits
    assert relative_error(torch.cat(steps, dim=1), expected) < tiny_rounding(BOUNDARY + 6)


def test_a_prompt_of_one_token_is_a_prefill_and_its_steps_are_not(llama: Any, exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    with torch.no_grad():
        loaded(token_rows(4 * WINDOW, rows=1))
    prompt = torch.tensor([[7]])
    expected = extend(llama, switch_for(llama, n_hat=6).scalings[0]).generate(prompt, use_cache=False, **GREEDY)
    assert loaded.generate(prompt, **GREEDY).tolist() == expected.tolist()


def test_beams_across_a_boundary_are_those_without_a_cache(exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    batch = padded([token_rows(length, rows=1) for length in (BOUNDARY - 3, BOUNDARY // 2)])
    generated = loaded.generate(**batch, num_beams=3, **GREEDY)
    assert generated.tolist() == loaded.generate(**batch, num_beams=3, use_cache=False, **GREEDY).tolist()


def test_a_prompt_in_chunks_that_outgrows_its_scaling_is_refused(exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    with pytest.raises(ValueError, match=r"load_extended\(path, length="):
        loaded.generate(token_rows(BOUNDARY + 20, rows=1), prefill_chunk_size=16, **GREEDY)


def test_a_given_length_holds_the_scaling_for_prompts_read_in_chunks(llama: Any, exported_llama: Path) -> None:
    length = BOUNDARY + 20
    loaded = ropewalk.load_extended(exported_llama, length=length).eval()
    prompt = token_rows(length, rows=1)
    expected = extend(llama, switch_for(llama, n_hat=6).scalings[1]).generate(prompt, **GREEDY)
    assert loaded.generate(prompt, prefill_chunk_size=16, **GREEDY).tolist() == expected.tolist()


def test_extend_replaces_the_whole_switch(llama: Any, exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    scaling = switch_for(llama, n_hat=6).scalings[1]
    extend(loaded, scaling)
    with torch.no_grad():
        loaded(token_rows(3, rows=1))
    assert current_scaling(loaded) == scaling


def test_dtype_is_passed_on_and_angles_stay_float32(exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, ropewalk; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_not_an_export_is_refused_in_one_line(exported_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        ropewalk.load_extended(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no ropewalk\.json"):
        ropewalk.load_extended(tmp_path / "empty")
    (exported_llama / "ropewalk.json").write_text("{}")
    with pytest.raises(ValueError, match="not a LengthSwitch") as caught:
        ropewalk.load_extended(exported_llama)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "ropewalk.json"])
def test_a_wrong_factor_count_is_refused_in_one_line(exported: Path, file: str) -> None:
    values = json.loads((exported / file).read_text())
    if file == "config.json":
        values["rope_parameters"]["long_factor"].append(3.0)
    else:
        values["switch"][0]["scaling"]["factors"].append(3.0)
    (exported / file).write_text(json.dumps(values))
    with pytest.raises(ValueError, match="factor") as caught:
        ropewalk.load_extended(exported)
    assert "\n" not in str(caught.value)
    assert file in str(caught.value)


def test_weights_that_are_not_whole_safetensors_are_refused(llama: Any, exported_llama: Path) -> None:
    weights = exported_llama / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file") as caught:
        ropewalk.load_extended(exported_llama)
    assert "\n" not in str(caught.value)
    weights.unlink()
    torch.save(llama.state_dict(), exported_llama / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors, and nothing else is loaded"):
        ropewalk.load_extended(exported_llama)


def test_missing_weights_are_refused_not_filled_with_noise(llama: Any, exported_llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(exported_llama / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, exported_llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        ropewalk.load_extended(exported_llama)
