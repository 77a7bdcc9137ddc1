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
from ropewalk.rope import current_scaling, extend, scaling_for_length
from tiny_models import WINDOW, token_rows

from .conftest import switch_for

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
            ours = extend(model, scaling_for_length(switch, length))(ids).logits
            assert torch.equal(loaded(ids).logits, ours), length


def test_generation_across_a_switch_boundary_keeps_the_scaling_of_its_prompt(model: Any, exported: Path) -> None:
    loaded = ropewalk.load_extended(exported).eval()
    prompt = token_rows(BOUNDARY - 5, rows=1)
    scaling = scaling_for_length(switch_for(model, n_hat=6), prompt.shape[1])
    expected = extend(model, scaling).generate(prompt, use_cache=False, **GREEDY)
    assert loaded.generate(prompt, **GREEDY).tolist() == expected.tolist()
    assert current_scaling(loaded) == scaling


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
        expected = extend(llama, switch_for(llama, n_hat=6)[0][1])(ids).logits
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, atol=1e-5, rtol=1e-5)


def test_a_left_padded_batch_generates_what_each_row_generates_alone(model: Any, exported: Path) -> None:
    loaded = ropewalk.load_extended(exported).eval()
    lengths = (BOUNDARY + 9, BOUNDARY + 1, BOUNDARY + 4)
    prompts = [token_rows(length, rows=1) for length in lengths]
    width = max(lengths)
    ids = torch.cat([torch.nn.functional.pad(prompt, (width - prompt.shape[1], 0)) for prompt in prompts])
    mask = torch.stack([(torch.arange(width) >= width - length).long() for length in lengths])
    together = loaded.generate(ids, attention_mask=mask, **GREEDY)[:, width:]
    alone = [loaded.generate(prompt, **GREEDY)[0, prompt.shape[1] :] for prompt in prompts]
    assert together.tolist() == [row.tolist() for row in alone]


def test_the_longest_row_of_a_padded_batch_decides_and_padding_does_not_count(llama: Any, exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    switch = switch_for(llama, n_hat=6)
    ids = token_rows(BOUNDARY + 10, rows=2)
    for longest, scaling in ((BOUNDARY, switch[0][1]), (BOUNDARY + 1, switch[1][1])):
        mask = torch.ones_like(ids)
        mask[:, : ids.shape[1] - longest] = 0
        mask[0, : ids.shape[1] - 3] = 0
        loaded.generate(ids, attention_mask=mask, **GREEDY)
        assert current_scaling(loaded) == scaling


def test_a_prompt_of_one_token_is_a_prefill_and_its_steps_are_not(llama: Any, exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    with torch.no_grad():
        loaded(token_rows(4 * WINDOW, rows=1))
    prompt = torch.tensor([[7]])
    expected = extend(llama, switch_for(llama, n_hat=6)[0][1]).generate(prompt, use_cache=False, **GREEDY)
    assert loaded.generate(prompt, **GREEDY).tolist() == expected.tolist()


def test_beams_keep_one_scaling(llama: Any, exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    prompt = token_rows(BOUNDARY - 3, rows=1)
    found = loaded.generate(prompt, num_beams=3, **GREEDY)
    expected = extend(llama, switch_for(llama, n_hat=6)[0][1]).generate(prompt, num_beams=3, **GREEDY)
    assert found.tolist() == expected.tolist()


def test_a_given_length_holds_the_scaling_for_prompts_read_in_chunks(llama: Any, exported_llama: Path) -> None:
    length = BOUNDARY + 20
    loaded = ropewalk.load_extended(exported_llama, length=length).eval()
    prompt = token_rows(length, rows=1)
    expected = extend(llama, switch_for(llama, n_hat=6)[1][1]).generate(prompt, **GREEDY)
    assert loaded.generate(prompt, prefill_chunk_size=16, **GREEDY).tolist() == expected.tolist()


def test_extend_replaces_the_whole_switch(llama: Any, exported_llama: Path) -> None:
    loaded = ropewalk.load_extended(exported_llama).eval()
    scaling = switch_for(llama, n_hat=6)[1][1]
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
    with pytest.raises(ValueError, match="not a length switch") as caught:
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
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors"):
        ropewalk.load_extended(exported_llama)
    torch.save(llama.state_dict(), exported_llama / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only safetensors"):
        ropewalk.load_extended(exported_llama)


def test_missing_weights_are_refused_not_filled_with_noise(llama: Any, exported_llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(exported_llama / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, exported_llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks the weights"):
        ropewalk.load_extended(exported_llama)
