"""A plan from a model's config alone: the sizes, the formulas, the memory of a real pass, and what makes it fit."""

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from ropewalk.composition import checked, register
from ropewalk.config import Config
from ropewalk.costs.activations import ActivationTable, needed, traced_bytes
from ropewalk.costs.advice import savings
from ropewalk.costs.shape import read_config, shape_of
from ropewalk.costs.work import Rate, Work, flops_of, forward_flops, memory_of, seconds
from ropewalk.finetune.memory import training_work
from ropewalk.models.loss import hidden_states, mean_loss
from ropewalk.plan.costs import Planner
from ropewalk.plan.remedies import changed
from ropewalk.plan.table import plan, plan_rows, plan_text
from tiny_models import ROPE_MODELS, token_rows
from workspace import ROOT, run_script

TRAIN = Work("finetune_first", "training", "train", 64, 8, 2, 8)


def composed(*overrides: str) -> Config:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return checked(compose("config", [*overrides, "output=results", "work=work"]))


@pytest.mark.parametrize("name", ROPE_MODELS)
def test_the_sizes_of_a_config_are_those_of_its_model(name: str) -> None:
    model = ROPE_MODELS[name]()
    shape = shape_of(model.config, name=name)
    assert shape.parameters == model.num_parameters()
    rows = token_rows(32, rows=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        hidden_states(model, rows)
    counted = forward_flops(shape, length=32)
    head = 2 * 32 * shape.hidden * shape.vocab
    # The counter takes attention as if every token read all others.
    assert counter.get_total_flops() == counted.linear - head + 2 * counted.attention


def test_a_backward_pass_costs_two_forward_passes_and_recomputing_one_more() -> None:
    shape = shape_of(ROPE_MODELS["llama"]().config, name="llama")
    once = forward_flops(shape, length=64)
    counted = flops_of(TRAIN, shape), flops_of(replace(TRAIN, recompute=True), shape)
    assert [flops.linear / once.linear for flops in counted] == [24, 32]
    assert seconds(counted[0], Rate(1e9, 1e9), devices=4) == pytest.approx(counted[0].total / 4e9)


def test_sharding_splits_the_states_and_leaves_whole_layers() -> None:
    shape = shape_of(ROPE_MODELS["llama"]().config, name="llama")
    whole = memory_of(TRAIN, shape, 1000.0)
    assert (whole.weights, whole.optimizer) == (4 * shape.parameters, 8 * shape.parameters)
    split = memory_of(replace(TRAIN, devices=4, sharded=True), shape, 1000.0)
    assert split.weights == whole.weights / 4
    assert split.gradients == whole.gradients / 4
    assert split.activations > whole.activations


@pytest.mark.parametrize("recompute", [False, True])
def test_traced_bytes_are_those_of_a_real_pass(recompute: bool) -> None:
    """What autograd keeps for the backward pass, counted on real tensors."""
    model = ROPE_MODELS["llama"]().train()
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    weight_storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mean_loss(model, token_rows(2048, rows=1))
    saved = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weight_storages)
    traced = traced_bytes(model.config, kind="train", tokens=2048, dtype="float32", mixed=False, recompute=recompute)
    assert saved <= traced
    if not recompute:
        # Beside what is kept there are one layer's intermediate results.
        assert traced <= 2 * saved


def test_a_ring_holds_two_devices_keys_where_gathering_holds_all() -> None:
    shape = shape_of(ROPE_MODELS["llama"]().config, name="llama")
    alone = memory_of(replace(TRAIN, context=4), shape, 0.0).activations
    ring = memory_of(replace(TRAIN, context=4, ring=True), shape, 0.0).activations
    # Two layers' and one's gradients of the whole row; a quarter of it twice, in float32 as its gradients.
    assert alone / ring == 3 / (2 * 2 / 4)


def test_adapters_are_trained_in_float32_beside_weights_that_are_only_read() -> None:
    shape = shape_of(ROPE_MODELS["llama"]().config, name="llama")
    adapted = replace(TRAIN, kind="adapt", rank=16, dtype="bfloat16")
    memory, adapters = memory_of(adapted, shape, 0.0), 16 * shape.map_sizes
    assert (memory.weights, memory.gradients) == (2 * shape.parameters + 4 * adapters, 4 * adapters)
    assert memory.optimizer == 2 * memory.gradients
    beside = memory_of(replace(adapted, embeddings=True), shape, 0.0)
    assert beside.gradients - memory.gradients == 4 * shape.hidden * shape.vocab
    assert beside.weights - memory.weights == (4 - 2) * shape.hidden * shape.vocab


def test_every_model_and_process_takes_its_memory() -> None:
    shape = shape_of(ROPE_MODELS["llama"]().config, name="llama")
    read = Work("evaluate", "", "read", 64, 8, 2, 2)
    alone, several = memory_of(read, shape, 1000.0), memory_of(replace(read, models=3), shape, 1000.0)
    assert (several.weights, several.activations) == (3 * alone.weights, 1000.0)
    assert memory_of(replace(read, processes=2), shape, 1000.0).total == 2 * alone.total


def test_states_of_8_bits_are_a_quarter_and_offloaded_inputs_are_one_layers() -> None:
    config = ROPE_MODELS["llama"](num_hidden_layers=5).config
    shape, table = shape_of(config, name="llama"), ActivationTable(config)
    whole, small = memory_of(TRAIN, shape, 0.0), memory_of(replace(TRAIN, eight_bit=True), shape, 0.0)
    assert small.optimizer == whole.optimizer / 4 == 2 * shape.parameters
    recomputed = replace(TRAIN, length=2048, recompute=True)
    less = needed(recomputed, shape, table).total - needed(replace(recomputed, offload=True), shape, table).total
    # The inputs of four layers.
    assert less == pytest.approx(4 * 2 * 2048 * shape.hidden * 4, rel=0.01)


def test_memory_grows_with_layers_and_tokens_as_traced() -> None:
    config = ROPE_MODELS["llama"](num_hidden_layers=5).config
    options: dict[str, Any] = {"kind": "train", "tokens": 512, "dtype": "float32", "mixed": False, "recompute": False}
    size = ActivationTable(config)(**options)
    assert size == pytest.approx(traced_bytes(config, **options), rel=0.02)


def test_the_works_read_as_many_tokens_as_the_stages_do() -> None:
    config = composed("experiment=smoke")
    works = Planner(config).works(config)
    tokens = {work.what: work.tokens for work in works if work.kind == "train"}
    assert tokens == {
        "training, 1,024 tokens": 3 * 2 * 1024,
        "training, 2,048 tokens": 3 * 2 * 2048,
        "control, 256 tokens": 4 * 16 * 256,
    }
    (search,) = [work for work in works if work.stage == "search_first" and work.kind == "read"]
    # The published methods, the gradient's start and end, and two trials of six, of two documents each.
    assert search.tokens == (3 + 2 + 2) * 2 * 2048
    assert {work.stage for work in works} == {
        "search_first", "finetune_first", "finetune_second", "search_second", "recover", "evaluate", "export",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("way", "stages", "models"),
    [
        ("untrained", {"search_first", "evaluate", "export"}, 1),
        ("trained", {"search_first", "finetune_first", "finetune_second", "recover", "evaluate", "export"}, 3),
        (
            "long",
            {"search_first", "finetune_first", "finetune_second", "search_second", "recover", "evaluate", "export"},
            3,
        ),
    ],
)
def test_only_the_stages_that_work_are_planned(tmp_path: Path, way: str, stages: set[str], models: int) -> None:
    """And evaluate holds base model, fine-tuned model and control where there are such."""
    ROPE_MODELS["llama"]().config.save_pretrained(tmp_path)
    config = composed(f"model.path={tmp_path}", "model.original_length=64", f"extension={way}", "finetune.control=true")
    works = Planner(config).works(config)
    assert {work.stage for work in works} == stages
    assert {work.models for work in works if work.stage == "evaluate"} == {models}


def test_trained_baselines_are_planned_and_held() -> None:
    config = composed("experiment=smoke", "baselines.methods=[yarn,pi]")
    works = Planner(config).works(config)
    assert [work.what for work in works if work.stage == "finetune_baselines"] == [
        "yarn, 1,024 tokens", "yarn, 2,048 tokens", "pi, 1,024 tokens", "pi, 2,048 tokens",
    ]  # fmt: skip
    assert {work.models for work in works if work.stage == "evaluate"} == {5}


def test_searches_and_evaluation_compute_in_the_models_dtype_and_training_in_its_precision(tmp_path: Path) -> None:
    ROPE_MODELS["llama"]().config.save_pretrained(tmp_path)
    whole = (f"model.path={tmp_path}", "model.original_length=64", "extension=trained", "plan=h100")

    def computed(*overrides: str) -> set[tuple[bool, str, str]]:
        config = composed(*whole, *overrides)
        return {(work.kind == "train", work.dtype, work.computes_in) for work in Planner(config).works(config)}

    assert computed("model.dtype=float32") == {(False, "float32", "float32"), (True, "float32", "bfloat16")}
    assert computed("model.dtype=bfloat16") == {(False, "bfloat16", "bfloat16"), (True, "float32", "bfloat16")}
    assert computed("model.dtype=bfloat16", "finetune.precision=32-true") == {
        (False, "bfloat16", "bfloat16"),
        (True, "float32", "float32"),
    }
    assert computed("model.dtype=float32", "finetune.precision=64-true") == {
        (False, "float32", "float32"),
        (True, "float64", "float64"),
    }


def test_float32_takes_as_long_as_its_published_peak_says(tmp_path: Path) -> None:
    ROPE_MODELS["llama"]().config.save_pretrained(tmp_path)
    whole = (f"model.path={tmp_path}", "model.original_length=64", "extension=untrained", "plan=h100")
    half, single = (plan(composed(*whole, f"model.dtype={dtype}")) for dtype in ("bfloat16", "float32"))
    for fast, slow in zip(half.costs, single.costs, strict=True):
        assert slow.seconds / fast.seconds == pytest.approx(989.4 / 66.9)
    with pytest.raises(ValueError, match=r"plan\.float32_tflops must be given .* search_first computes in float32"):
        plan(composed(*whole, "model.dtype=float32", "plan.float32_tflops=null"))


MORE_LAYERS = {"num_hidden_layers": 5, "intermediate_size": 256}


@pytest.mark.parametrize(
    "start",
    [
        (),
        ("finetune.activation_checkpointing=full", "finetune.optimizer=adamw_8bit"),
        ("parallel=ddp", "parallel.context=2"),
        ("parallel=ddp", "parallel.context=2", "parallel.attention=gathered"),
    ],
)
def test_what_a_training_says_would_help_is_what_the_plan_says(tmp_path: Path, start: tuple[str, ...]) -> None:
    ROPE_MODELS["llama"](**MORE_LAYERS).config.save_pretrained(tmp_path)
    model = ("model=hf", f"model.path={tmp_path}", "model.original_length=64", "plan=h100", "experiment=smoke")
    overrides = (*model, "finetune.micro_batch_size=2", "model.dtype=float32", *start)
    config = composed(*overrides)
    planner = Planner(config)

    def planned(*more: str) -> float:
        (work,) = [work for work in planner.works(composed(*overrides, *more)) if work.what == "training, 2,048 tokens"]
        return planner.memory(work).total

    # mixed: as the planned device computes.
    work = training_work(
        config.finetune.second, config.finetune, config.parallel, mixed=True, dtype="float32", gpu=True
    )
    model_config = read_config(str(tmp_path))
    named = dict(islice(savings(work, shape_of(model_config, name=""), ActivationTable(model_config)), 3))
    assert len(named) == 3
    before = planned()
    assert named == {setting: before - planned(setting) for setting in named}


LLAMA = {"hidden_size": 512, "intermediate_size": 1408, "vocab_size": 1024, "num_hidden_layers": 4}


@pytest.mark.slow
def test_settings_that_are_named_make_everything_fit(tmp_path: Path) -> None:
    ROPE_MODELS["llama"](**LLAMA).config.save_pretrained(tmp_path)
    config = composed(
        f"model.path={tmp_path}", "model.original_length=64", "plan=h100", "plan.memory_gib=0.3", "plan.reserve=0",
        "extension.target=4096", "extension=trained", "finetune.micro_batch_size=2", "finetune.first.batch_size=16",
        "finetune.second.batch_size=16", "finetune.activation_checkpointing=none",
    )  # fmt: skip
    small = plan(config)
    assert any(cost.memory.total > 0.3 * 2**30 for cost in small.costs)
    assert small.remedies
    assert small.verdict.startswith(f"does not fit: set {small.remedies[0]}; then ")
    for remedy in small.remedies:
        again = plan(changed(config, remedy.values))
        assert again.verdict.startswith("fits: ")
        assert all(row["fits"] for row in plan_rows(again))
    text = plan_text(small)
    assert text.splitlines()[0] == small.verdict
    assert "\ndoes not fit:\n  " in text
    assert "GiB gradients" in text


@pytest.mark.slow
def test_a_plan_that_nothing_helps_says_what_would(tmp_path: Path) -> None:
    ROPE_MODELS["llama"](**LLAMA).config.save_pretrained(tmp_path)
    whole = (f"model.path={tmp_path}", "model.original_length=64", "plan=h100", "extension=untrained")
    verdict = plan(composed(*whole, "plan.memory_gib=0.01")).verdict
    assert verdict.startswith("does not fit: no setting makes it fit into the 0.0 GiB of h100, since ")
    assert "take plan=rtx4090 or plan=" in verdict


def test_the_script_prints_a_line_for_every_stage_and_needs_no_weights(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ROPE_MODELS["llama"]().config.save_pretrained(scratch / "config-only")
    run_script("plan", "model=hf", "model.path=config-only", "experiment=smoke", "plan=h100", "output=out")
    printed = capsys.readouterr().out
    assert printed.startswith("fits: ")
    for stage in ("search_first", "finetune_first", "finetune_second", "search_second", "recover", "evaluate", "all"):
        assert f"\n{stage} " in printed
    assert (scratch / "out" / "plan.csv").is_file()
    with pytest.raises(SystemExit, match=r"plan: .*gone is not there"):
        run_script("plan", "model=hf", "model.path=gone", "output=out")


def table_of_8b() -> ActivationTable:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128_256,
    )  # fmt: skip
    return ActivationTable(config, gpu=True)


def test_a_model_of_8b_reads_2048k_tokens_on_one_card() -> None:
    """Hidden states and one layer's keys and values take 16 and 8 GiB; a KV cache of all layers takes 256."""
    read = partial(
        table_of_8b(), kind="read", tokens=2**21, dtype="bfloat16", mixed=False, recompute=False, chunk=2048
    )  # fmt: skip
    assert 24 * 2**30 < read() < 26 * 2**30
    assert 256 * 2**30 < read(generates=True) < 258 * 2**30


def test_factors_of_a_model_of_8b_are_learned_at_512k_tokens_beside_its_weights_on_one_card() -> None:
    """Its hidden states take 4 GiB, and what a layer computes would take 33 times as much without tiles."""
    learn = partial(table_of_8b(), kind="learn", tokens=2**19, dtype="bfloat16", mixed=False, recompute=True)
    assert learn(offload=True) / 2**32 < 13
    assert learn() / 2**32 > 33
