"""How a model is trained: each option leaves the loss as it is, or the result what it should be."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from ropewalk.config import LoraConfig, ParallelConfig
from ropewalk.costs.activations import ActivationTable
from ropewalk.costs.advice import savings
from ropewalk.costs.shape import shape_of
from ropewalk.finetune.adapters import adapters
from ropewalk.finetune.memory import training_work, within_memory_of
from ropewalk.finetune.module import FinetuneModule
from ropewalk.finetune.utilisation import flops_per_token, peak_flops
from ropewalk.models.head import layers_of
from ropewalk.rope import LearnedScaling, RopeScaling, RotaryEmbedding, current_scaling, extend, find_rotary
from tiny_models import ROPE_MODELS, WINDOW, loss_rounding, tiny_llama, token_rows
from tiny_runs import FINETUNE, SCALING, STEP, train
from tolerances import relative_error, rounding
from workspace import ROOT, environment

Run = tuple[Any, list[dict[str, float]]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("plain"))


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run[1]]


@pytest.mark.parametrize("activation_checkpointing", ["full", "offload"])
def test_recomputed_activations_give_the_same_training(
    plain: Run, tmp_path: Path, activation_checkpointing: str
) -> None:
    found = train(tmp_path, config=replace(FINETUNE, activation_checkpointing=activation_checkpointing))
    assert losses(found) == losses(plain)
    assert all(torch.equal(a, b) for a, b in zip(found[0].parameters(), plain[0].parameters(), strict=True))
    assert not found[0].is_gradient_checkpointing


def test_the_fused_optimizer_takes_the_same_step(tmp_path: Path) -> None:
    step = replace(STEP, steps=1)
    plain, fused = (
        train(tmp_path / name, step=step, config=replace(FINETUNE, optimizer=name))[0]
        for name in ("adamw", "adamw_fused")
    )
    for (name, weight), expected in zip(fused.named_parameters(), plain.parameters(), strict=True):
        # The two moments, their corrections, a root, a division and a difference.
        assert relative_error(weight, expected) < rounding(8), name


def test_states_of_8_bits_give_nearly_the_same_training(plain: Run, tmp_path: Path) -> None:
    steps_of_8_bits = train(tmp_path, config=replace(FINETUNE, optimizer="adamw_8bit"))
    fall = losses(plain)[0] - min(losses(plain))
    # A moment is kept to one part in 128.
    assert losses(steps_of_8_bits) == pytest.approx(losses(plain), abs=fall / 128)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All in a dict of dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors(inner)


def test_8_bit_states_continue_after_a_kill(tmp_path: Path) -> None:
    # Wide enough for 8 bits: smaller tensors keep 32.
    config, model = replace(FINETUNE, optimizer="adamw_8bit"), {"hidden_size": 64, "intermediate_size": 96}
    whole = train(tmp_path / "whole", config=config, model=tiny_llama(**model))
    with pytest.raises(ZeroDivisionError):
        train(
            tmp_path / "cut",
            config=config,
            model=tiny_llama(**model),
            before_step=lambda step: 1 // 0 if step == 5 else None,
        )
    state = torch.load(tmp_path / "cut" / "state" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert any(value.dtype == torch.uint8 for value in tensors(state))
    again = train(tmp_path / "cut", config=config, model=tiny_llama(**model))
    assert losses(again) == losses(whole)


@pytest.mark.slow
def test_compiled_layers_share_a_graph_and_give_the_same_loss(plain: Run, tmp_path: Path) -> None:
    counters.clear()
    found = train(tmp_path, config=replace(FINETUNE, compile=True))
    assert losses(found) == pytest.approx(losses(plain), abs=1e-4)
    assert len(layers_of(found[0])) > 1
    assert counters["stats"]["unique_graphs"] == 1
    assert all(module._compiled_call_impl is None for module in found[0].modules())


def test_bfloat16_trains_with_angles_in_float32(plain: Run, tmp_path: Path) -> None:
    found = train(tmp_path, config=replace(FINETUNE, precision="bf16-mixed"), model=tiny_llama())
    rotary = find_rotary(found[0])[1]
    assert isinstance(rotary, RotaryEmbedding)
    assert rotary.inv_freq.dtype == rotary.factors.dtype == torch.float32
    assert losses(found) == pytest.approx(losses(plain), abs=0.2)


LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.mark.parametrize("kind", ROPE_MODELS)
def test_adapters_are_merged_into_a_plain_model(kind: str) -> None:
    model = ROPE_MODELS[kind]()
    names, before = set(model.state_dict()), model(token_rows(WINDOW)).logits
    with adapters(model, LORA):
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained
        assert all("lora_" in name for name in trained)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.05)
        adapted = model(token_rows(WINDOW)).logits
    assert set(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    # One model multiplies by the two matrices of an adapter in turn, the other by their product.
    assert relative_error(model(token_rows(WINDOW)).logits, adapted) < loss_rounding(model, WINDOW)
    assert relative_error(before, adapted) > 0.1


@pytest.mark.parametrize("more", [False, True])
def test_adapters_train_alone_or_with_embeddings_and_norms(tmp_path: Path, more: bool) -> None:
    before = tiny_llama()
    lora = replace(LORA, embeddings=more, norms=more)
    config = replace(FINETUNE, lora=lora, activation_checkpointing="full")
    step = replace(STEP, learning_rate=1e-2)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, step=step, config=config, before_step=lambda step: 1 // 0 if step == 5 else None)
    saved = torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)["state_dict"]
    assert ("model.model.norm.weight" in saved) == more
    assert not any("base_layer" in name for name in saved)
    model, rows = train(tmp_path, step=step, config=config)
    assert [row["step"] for row in rows] == list(range(1, STEP.steps + 1))
    same = {name: torch.equal(a, b) for (name, a), b in zip(before.named_parameters(), model.parameters(), strict=True)}
    assert not same["model.layers.0.self_attn.q_proj.weight"]
    assert same["model.embed_tokens.weight"] != more
    assert same["model.norm.weight"] != more
    assert same["lm_head.weight"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_trained_beside_bfloat16_weights_is_float32_and_bfloat16_again(
    tmp_path: Path, precision: str, tied: bool
) -> None:
    config = replace(FINETUNE, precision=precision, lora=replace(LORA, embeddings=True, norms=True))
    found: dict[str, torch.dtype] = {}

    def note(module: FinetuneModule) -> None:
        found.update({name: weight.dtype for name, weight in module.named_parameters() if weight.requires_grad})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneModule, "on_train_start", note)
        model = tiny_llama(tie_word_embeddings=tied).bfloat16()
        model, rows = train(tmp_path, config=config, model=model, step=replace(STEP, learning_rate=1e-2))
    assert set(found.values()) == {torch.float32}
    assert {name.split(".")[-2] for name in found} >= {"norm", "input_layernorm", "embed_tokens"}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model(token_rows(WINDOW)).logits.dtype == torch.bfloat16
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_adapters_for_layers_that_are_not_there_are_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"^finetune\.lora\.targets: .*nowhere"),
        adapters(tiny_llama(), replace(LORA, targets=["nowhere"])),
    ):
        pass


def test_learned_factors_start_where_they_should_and_stay_monotone() -> None:
    learned = LearnedScaling(SCALING)
    # A logarithm and its exponential.
    assert relative_error(learned.scaling().factors, SCALING.factors) < rounding(2)
    assert relative_error(learned.scaling().attention_factor, SCALING.attention_factor) < rounding(2)
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.05)
    for seed in range(20):
        optimizer.zero_grad()
        wish = torch.randn(8, generator=torch.Generator().manual_seed(seed))
        (learned.factors() * wish).sum().backward()
        optimizer.step()
        learned.project()
    found = learned.scaling().factors
    assert list(found) == sorted(found)
    assert found != pytest.approx(SCALING.factors)
    assert learned.to(torch.bfloat16).factors().dtype == torch.float32


def test_factors_learn_with_the_weights(tmp_path: Path) -> None:
    config = replace(FINETUNE, learn_factors=True, factors_learning_rate=0.02)
    model, rows = train(tmp_path, config=config)
    found = current_scaling(model)
    assert isinstance(found, RopeScaling)
    assert found.factors != SCALING.factors
    assert found.attention_factor != SCALING.attention_factor
    assert list(found.factors) == sorted(found.factors)
    assert (found.n_hat, found.original_length, found.target_length) == (0, WINDOW, 4 * WINDOW)
    assert rows[-1]["learning_rate"] < STEP.learning_rate
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "cut", config=config, before_step=lambda step: 1 // 0 if step == 5 else None)
    again, _ = train(tmp_path / "cut", config=config)
    assert current_scaling(again) == found


def test_learned_factors_lower_the_loss_of_frozen_weights() -> None:
    """What they learn is of use: by themselves they make a wrong scaling better."""
    model = tiny_llama().requires_grad_(False)
    wrong = replace(SCALING, factors=tuple(1.2 * factor for factor in SCALING.factors), attention_factor=1.4)
    target = extend(tiny_llama(), SCALING)(token_rows(96)).logits.detach()
    extend(model, wrong)
    learned, rotary = LearnedScaling(wrong), find_rotary(model)[1]
    assert isinstance(rotary, RotaryEmbedding)
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.02)
    errors = []
    for _ in range(25):
        learned.put_into(rotary)
        error = (model(token_rows(96)).logits - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        learned.project()
        errors.append(float(error))
    assert errors[-1] < 0.8 * errors[0]


def test_flops_are_those_that_torch_counts() -> None:
    model, rows = tiny_llama(attn_implementation="eager"), token_rows(64, rows=1)
    with FlopCounterMode(display=False) as counter:
        model(rows).logits.sum().backward()
    # torch counts attention over the whole row, though half of it is masked.
    config = model.config
    half_of_attention = 6 * config.num_attention_heads * 16 * config.num_hidden_layers * 64
    assert counter.get_total_flops() / 64 == pytest.approx(flops_per_token(model, length=64) + half_of_attention)


def test_frozen_matrices_cost_less() -> None:
    model = tiny_llama()
    whole = flops_per_token(model, length=64)
    with adapters(model, LORA):
        assert 0.5 * whole < flops_per_token(model, length=64) < 0.95 * whole


def test_the_peak_is_what_the_user_says_or_measured() -> None:
    cpu = torch.device("cpu")
    assert peak_flops("32-true", device=cpu, tflops=2.0) == 2e12
    assert 1e8 < peak_flops("32-true", device=cpu, tflops=None) < 1e14


def test_every_step_is_logged_and_the_loss_by_position_now_and_then(plain: Run) -> None:
    for row in plain[1]:
        assert row["gradient_norm"] > 0
        assert row["samples"] == row["step"] * STEP.batch_size
        assert 0 < row["utilisation"] < 2
    assert [row["step"] for row in plain[1] if "loss_to_1" in row] == [1]
    first = plain[1][0]
    weights = {"loss_to_0.125": 5, "loss_to_0.25": 6, "loss_to_0.5": 12, "loss_to_1": 23}
    mean = sum(first[name] * count for name, count in weights.items()) / 46
    assert relative_error(mean, first["loss"]) < loss_rounding(tiny_llama(), STEP.batch_size * STEP.length)


class Faulty:
    """A tiny Llama whose loss is not a number in some passes."""

    def __init__(self, bad: set[int]) -> None:
        self.model, self.passes, self.bad = tiny_llama(), 0, bad
        self.model.model.register_forward_hook(self._spoil)

    def _spoil(self, module: Any, inputs: Any, output: Any) -> Any:
        if self.passes in self.bad:
            output.last_hidden_state = output.last_hidden_state * float("nan")
        self.passes += 1
        return output


def test_steps_without_a_number_are_left_out_up_to_a_count(tmp_path: Path) -> None:
    # Two passes a step: the second pass of step 1, and both of step 2.
    faulty = Faulty({3, 4, 5})
    model, rows = train(tmp_path, model=faulty.model, config=replace(FINETUNE, bad_steps=2))
    assert [row["step"] for row in rows if not row["loss"] < 100] == [2, 3]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_one_bad_step_too_many_keeps_the_last_good_state(tmp_path: Path) -> None:
    faulty = Faulty(set(range(8, 100)))
    with pytest.raises(ValueError, match=r"^3 steps in a row gave no number: the loss of step 6 is nan; lower"):
        train(tmp_path, model=faulty.model, config=replace(FINETUNE, bad_steps=2))
    assert all(torch.isfinite(parameter).all() for parameter in faulty.model.parameters())
    saved = torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_a_state_of_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, before_step=lambda step: 1 // 0 if step == 5 else None)
    with pytest.raises(
        ValueError, match=r"state is of LlamaForCausalLM with 2 layers .* the model is Qwen2ForCausalLM"
    ):
        train(tmp_path, model=ROPE_MODELS["qwen2"]())


def fail() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_would_help_against_too_little_memory_is_named_with_numbers() -> None:
    config, one = tiny_llama().config, ParallelConfig(name="single_device")
    step = replace(STEP, length=1024)
    work = training_work(step, replace(FINETUNE, micro_batch_size=4), one, mixed=False, dtype="float32", gpu=False)
    with (
        pytest.raises(
            MemoryError,
            match=r"^out of memory; 4 rows of 1024 tokens do not fit; what would help: "
            r"finetune\.activation_checkpointing=full \(\d+ MiB less\); finetune\.micro_batch_size=2 \(\d+ MiB less\); "
            r"finetune\.optimizer=adamw_8bit \(\d+ MiB less\)$",
        ),
        within_memory_of(work, config),
    ):
        fail()
    least = replace(FINETUNE, activation_checkpointing="offload", optimizer="adamw_8bit", lora=LORA, micro_batch_size=1)
    smallest = training_work(step, least, one, mixed=False, dtype="float32", gpu=False)
    settings = [setting for setting, _ in savings(smallest, shape_of(config, name=""), ActivationTable(config))]
    assert settings == ["a length of 512", "model.dtype=bfloat16"]
    with pytest.raises(ZeroDivisionError), within_memory_of(work, config):
        1 // 0  # noqa: B018


def test_a_model_that_its_config_alone_does_not_make_gets_the_settings_without_numbers() -> None:
    class Own(PreTrainedConfig):
        model_type = "own"

    work = training_work(STEP, FINETUNE, ParallelConfig(name="single_device"), mixed=False, dtype="float32", gpu=False)
    with (
        pytest.raises(
            MemoryError,
            match=r"what would help: finetune\.activation_checkpointing=full; finetune\.micro_batch_size=1;",
        ),
        within_memory_of(work, Own(num_hidden_layers=2)),
    ):
        fail()


FULL = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from tiny_models import tiny_llama
from tiny_runs import STEP, train, token_store
folder = Path(sys.argv[1])
token_store(folder / "store", tokens=40_000)
train(folder, step=replace(STEP, steps=1, batch_size=1))
size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + 300 * 2**20,) * 2)
try:
    train(folder / "large", step=replace(STEP, length=16384, batch_size=4), model=tiny_llama(intermediate_size=4096))
except MemoryError as error:
    print("told:", error)
"""


@pytest.mark.slow
def test_too_little_memory_is_one_line_with_three_settings(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "store").symlink_to(tmp_path / "store")
    names = {**environment(ROOT), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], env=names, capture_output=True, text=True, timeout=300, check=False
    )
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("told:")]
    assert "rows of 16384 tokens do not fit; what would help: finetune.activation_checkpointing=full" in line
    assert len(line.partition("what would help: ")[2].split("; ")) == 3
