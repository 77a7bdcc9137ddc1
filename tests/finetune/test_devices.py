"""Training on several devices is training on one: two real processes under gloo, for every strategy."""

import math
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from processes import fresh
from ropewalk.config import FinetuneConfig, FinetuneStepConfig, LoraConfig, ParallelConfig
from ropewalk.corpus.segments import Rows
from ropewalk.finetune.gathered import Slices, documents_of
from ropewalk.finetune.loss import batch_loss
from ropewalk.finetune.module import FinetuneModule
from ropewalk.finetune.shard import Shard
from ropewalk.finetune.windows import MixedRows
from ropewalk.models.checkpoints import WholeCheckpointIO
from ropewalk.models.loss import losses_of, targets_of, token_losses
from ropewalk.rope import RopeScaling, current_scaling, extend, rotary_shape
from tiny_models import ROPE_MODELS, loss_rounding, tiny_llama, tiny_of, token_rows
from tiny_runs import EOS, FINETUNE, STEP, smooth_adam, token_store, train
from tolerances import relative_error

PARALLEL = {
    "ddp": ParallelConfig(name="ddp", strategy="ddp", devices=2),
    "fsdp": ParallelConfig(name="fsdp", strategy="fsdp", devices=2),
    "context": ParallelConfig(name="context", strategy="ddp", devices=2, context=2),
    "fsdp+context": ParallelConfig(name="both", strategy="fsdp", devices=2, context=2),
    "fsdp+ring": ParallelConfig(name="both", strategy="fsdp", devices=2, context=2, attention="ring"),
}
# Start tokens that keep the original rotation, which end inside a slice.
N_HAT = 17
SHORT = replace(STEP, steps=4, warmup_steps=0, decay="constant")
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
TINY = {"hidden_size": 32, "intermediate_size": 48}


def scaled(model: Any) -> Any:
    shape = rotary_shape(model)
    pairs = shape.rotary_dim // 2
    factors = tuple(1.0 + 3.0 * pair / pairs for pair in range(pairs))
    return extend(model, RopeScaling(factors, 64, 256, n_hat=N_HAT, attention_factor=1.1))


def scaled_of(model: Any) -> RopeScaling:
    scaling = current_scaling(model)
    assert scaling is not None
    return scaling


def two_processes(work: Callable[[int], None], *, count: int = 2, killed: int | None = None) -> None:
    """``work(rank)`` in two processes, or ``count``, that find each other as those of torchrun do.

    The process of the rank ``killed`` must kill itself, and the others then fail.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def process(rank: int) -> None:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
        )  # fmt: skip
        work(rank)

    # Not forked from this process, which may have threads and locks of earlier tests.
    processes = [fresh(lambda rank=rank: process(rank)) for rank in range(count)]  # type: ignore[misc]
    for started in processes:
        started.join(240)
    codes = [started.exitcode for started in processes]
    for started in processes:
        started.kill()
    if killed is None:
        assert codes == [0] * count
    else:
        assert codes.pop(killed) == -signal.SIGKILL
        assert all(code == 1 for code in codes), codes


def positions_of_documents(rows: int) -> torch.Tensor:
    """(rows, 64): three documents a row, none of which ends where a slice does."""
    lengths = (21, 30, 13)
    return torch.cat([torch.arange(length) for length in lengths]).repeat(rows, 1)


def recall_rows() -> Rows:
    """Four rows, the first without an answer, the second's across the ends of the slices."""
    answers = torch.zeros(4, 64, dtype=torch.bool)
    answers[1, 14:18] = answers[2, 40:41] = answers[3, 3:6] = answers[3, 60:63] = True
    ids = token_rows(64, rows=4)
    ids[:, -1] = EOS
    return Rows(ids, answers)


def mixed_rows() -> MixedRows:
    """Four rows, of which the second and third hold packed documents."""
    tokens, answers = recall_rows()
    short = torch.tensor([False, True, True, False])
    positions = torch.where(short[:, None], positions_of_documents(4), torch.arange(64))
    return MixedRows(tokens, positions, short, answers & ~short[:, None])


def loss_and_gradients(model: Any, shard: Shard, kind: str) -> dict[str, torch.Tensor]:
    """Loss of four rows, its gradients, and the losses by position, (4, 2) sums and counts.

    Args:
        kind: "long" or "packed" rows under the model's scaling, "mixed" ones of which the packed are read under the
            original RoPE, or long ones with "answers" that count on their own.
    """
    by_position = torch.zeros(4, 2)
    if kind == "packed":
        tokens, positions = shard.rows(token_rows(64, rows=4)), positions_of_documents(4)
        targets = targets_of(token_rows(64, rows=4)).masked_fill(positions[:, 1:] == 0, -100)
        states = shard.states(model, tokens, positions=shard.rows(positions))
        summed = losses_of(model, states, shard.slice_targets(shard.rows(targets)), "sum")
        loss = shard.mean(summed * shard.world / (targets != -100).sum())
    else:
        weight = 0.0 if kind == "long" else 0.3
        batch = mixed_rows() if kind == "mixed" else recall_rows()
        losses = batch_loss(model, batch, shard=shard, window=64, answer_weight=weight, by_position=True)
        loss, by_position = losses.loss, torch.tensor(list(losses.by_position.values()))
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.detach(), "by_position": by_position, **gradients_of(model)}


def gradients_of(module: Any) -> dict[str, torch.Tensor]:
    """Whole gradients of the parameters that are trained."""
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {name: (g.full_tensor() if hasattr(g, "full_tensor") else g).clone() for name, g in gradients.items()}


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Tensors by name, each within ``tolerance`` of its norm, or of a hundredth of the norm of all where it is less."""
    assert actual.keys() == expected.keys()
    floor = 0.01 * math.hypot(*(float(tensor.norm()) for tensor in expected.values()))
    errors = {name: relative_error(actual[name], tensor, floor=floor) for name, tensor in expected.items()}
    assert {name: error for name, error in errors.items() if not error < tolerance} == {}


CASES = [
    *((name, rows) for name in ROPE_MODELS for rows in ("long", "packed")),
    ("llama", "mixed"),
    ("llama", "answers"),
]
RING = [*((name, "long") for name in ROPE_MODELS), ("llama", "answers")]
SHARED = [
    *((name, rows, context, "gathered") for name, rows in CASES for context in (1, 2)),
    *((name, rows, 2, "ring") for name, rows in RING),
]


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Losses and gradients of every case, averaged over two processes as DDP does: rows shared, then slices."""
    folder = tmp_path_factory.mktemp("shared")

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        for name, rows, context, attention in SHARED:
            shard = Shard(rank, 2, Slices(rank % context, context, attention=attention))
            values = loss_and_gradients(scaled(ROPE_MODELS[name](**TINY)), shard, rows)
            for value in values.values():
                dist.all_reduce(value)
                value /= 2
            if rank == 0:
                torch.save(values, folder / f"{name} {rows} {context} {attention}")
        dist.destroy_process_group()

    two_processes(work)
    return folder


@pytest.mark.parametrize(("name", "rows", "context", "attention"), SHARED)
def test_loss_and_gradients_are_those_of_one_process(
    shared_runs: Path, name: str, rows: str, context: int, attention: str
) -> None:
    model = scaled(ROPE_MODELS[name](**TINY))
    expected = loss_and_gradients(model, Shard(), rows)
    values = torch.load(shared_runs / f"{name} {rows} {context} {attention}", weights_only=True)
    tolerance = loss_rounding(model, 4 * 64)
    assert relative_error(values.pop("loss"), expected.pop("loss")) < tolerance
    sums, expected_sums = values.pop("by_position"), expected.pop("by_position")
    assert torch.equal(sums[:, 1], expected_sums[:, 1])
    assert relative_error(sums, expected_sums) < tolerance
    assert_close(values, expected, loss_rounding(model, 4 * 64, backward=True))


def test_answers_count_row_by_row_beside_all_tokens() -> None:
    model, rows = scaled(tiny_llama(**TINY)), recall_rows()
    with torch.no_grad():
        losses = token_losses(model, rows.ids)
        of_answers = torch.stack([losses[row][rows.answers[row, 1:]].mean() for row in (1, 2, 3)]).mean()
        both, plain = (batch_loss(model, rows, answer_weight=weight) for weight in (0.3, 0.0))
    tolerance = loss_rounding(model, 4 * 64)
    assert both.answer_loss is not None
    assert plain.answer_loss is None
    assert relative_error(both.answer_loss, of_answers) < tolerance
    assert relative_error(plain.loss, losses[:, :-1].mean()) < tolerance
    assert relative_error(both.loss, plain.loss + 0.3 * of_answers) < tolerance


def test_attention_that_leaves_documents_would_be_seen() -> None:
    model, tokens = scaled(tiny_llama(**TINY)), token_rows(64, rows=4)
    with torch.no_grad():
        alone, across = (
            losses_of(model, Shard().states(model, tokens, positions=positions), targets_of(tokens), "mean")
            for positions in (positions_of_documents(4), None)
        )
    assert relative_error(across, alone) > loss_rounding(model, 4 * 64)


@pytest.mark.parametrize(
    ("kind", "sizes", "part"),
    [
        ("falcon_h1", MAMBA, "layers of the type hybrid"),
        ("gemma2", {}, "passes softcap to its attention"),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2}, "passes s_aux to its attention"),
    ],
)
def test_attention_that_is_not_computed_across_devices_is_refused(kind: str, sizes: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=f"{part}.*set parallel.context=1"):
        Shard(0, 2, Slices(0, 2)).states(tiny_of(kind, **sizes), token_rows(64))


def test_recurrent_layers_would_leave_documents() -> None:
    with pytest.raises(ValueError, match=r"the type hybrid.*set finetune\.short_share=0"):
        Shard().states(tiny_of("falcon_h1", **MAMBA), token_rows(64), positions=positions_of_documents(2))


def test_every_token_is_on_one_device_and_each_holds_both_halves() -> None:
    tokens = torch.arange(48)[None]
    parts = [Slices(index, 3).of(tokens)[0] for index in range(3)]
    assert sorted(torch.cat(parts).tolist()) == list(range(48))
    assert parts[1].tolist() == [*range(8, 16), *range(32, 40)]
    assert documents_of(torch.tensor([[0, 1, 2, 0, 1, 0]])).tolist() == [[1, 1, 1, 2, 2, 3]]


class _Stop(Exception):
    pass


def trained(
    folder: Path,
    parallel: ParallelConfig | None,
    *,
    step: FinetuneStepConfig = SHORT,
    config: FinetuneConfig = FINETUNE,
    last: int | None = None,
) -> dict[str, Any]:
    """What a training by `smooth_adam` leaves; it stops when the rows of the step ``last`` are asked for.

    Losses and gradient norms of all steps, losses by position and gradients of the first one, and the way that the
    weights and the logarithms of the factors went from their start.
    """
    gradients: dict[str, torch.Tensor] = {}
    norms: list[float] = []

    def keep(module: FinetuneModule, optimizer: Any) -> None:
        original(module, optimizer)
        if not gradients:
            gradients.update(gradients_of(module))
        norms.append(module.gradient_norm)

    def before(number: int) -> None:
        if number == last:
            raise _Stop

    original = FinetuneModule.on_before_optimizer_step
    scaling = scaled_of(scaled(tiny_llama()))
    with pytest.MonkeyPatch.context() as patch, smooth_adam():
        patch.setattr(FinetuneModule, "on_before_optimizer_step", keep)
        model, rows = train(folder, step=step, config=config, scaling=scaling, parallel=parallel, before_step=before)
    weights, start = dict(model.named_parameters()), tiny_llama()
    assert {name: weight.shape for name, weight in weights.items()} == {n: w.shape for n, w in start.named_parameters()}
    return {
        "losses": torch.tensor([row["loss"] for row in rows]),
        "norms": torch.tensor(norms),
        "by_position": torch.tensor([value for name, value in rows[0].items() if name.startswith("loss_to_")]),
        "gradients": gradients,
        "factors": torch.tensor(scaled_of(model).factors).log() - torch.tensor(scaling.factors).log(),
        "moves": {name: weights[name].detach() - weight.detach() for name, weight in start.named_parameters()},
    }


def assert_same_training(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Within the rounding of all steps one after the other; of a resumed training, gradients since then count."""
    steps, since = len(expected["losses"]), len(actual["norms"])
    forward, both = (steps * loss_rounding(tiny_llama(), 4 * 128, backward=backward) for backward in (False, True))
    assert relative_error(actual["norms"], expected["norms"][-since:]) < both
    for key, tolerance in (("losses", forward), ("by_position", forward), ("factors", both)):
        assert relative_error(actual[key], expected[key]) < tolerance, key
    if since == steps:
        assert_close(actual["gradients"], expected["gradients"], both)
    assert_close(actual["moves"], expected["moves"], both)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("alone"), None, config=replace(FINETUNE, micro_batch_size=4))


@pytest.mark.parametrize("strategy", PARALLEL)
def test_a_strategy_trains_as_one_process_does(alone: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    def work(rank: int) -> None:
        result = trained(tmp_path, PARALLEL[strategy])
        if rank == 0:
            torch.save(result, tmp_path / "result")

    # The store is made here, since both processes would.
    train(tmp_path, step=replace(STEP, steps=1))
    (tmp_path / "state" / "last.ckpt").unlink(missing_ok=True)
    two_processes(work)
    result = torch.load(tmp_path / "result", weights_only=True)
    assert len(result["by_position"]) == 4
    assert_same_training(result, alone)


OPTIONS: dict[str, dict[str, Any]] = {
    # In a pass of one row per group, one has a long row and another a short one, or all have short ones.
    "mixed": {"short_share": 0.5},
    "mixed, recomputed": {"short_share": 0.5, "activation_checkpointing": "full"},
    "recomputed": {"activation_checkpointing": "full"},
    "compiled": {"compile": True, "activation_checkpointing": "full"},
    "factors": {"short_share": 0.5, "learn_factors": True, "factors_learning_rate": 0.02},
    "adapters": {"lora": LoraConfig(rank=4, alpha=8.0)},
    "adapters, norms, embeddings": {"lora": LoraConfig(rank=4, alpha=8.0, embeddings=True, norms=True)},
}
"""Options of a fine-tuning on rows of two windows."""
TWO_WINDOWS = replace(SHORT, length=128)


def groups_of(strategy: str) -> int:
    return PARALLEL[strategy].devices // PARALLEL[strategy].context


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        *((options, strategy) for options in ("mixed", "factors") for strategy in PARALLEL if "ring" not in strategy),
        ("mixed, recomputed", "fsdp"),
        ("recomputed", "fsdp+ring"),
        pytest.param("compiled", "fsdp", marks=pytest.mark.slow),
        ("adapters", "ddp"),
        ("adapters", "fsdp"),
        ("adapters, norms, embeddings", "fsdp+context"),
    ],
)
def test_a_strategy_trains_every_option_as_one_process_does(tmp_path: Path, options: str, strategy: str) -> None:
    config = replace(FINETUNE, micro_batch_size=1, **OPTIONS[options])

    def work(rank: int) -> None:
        result = trained(tmp_path, PARALLEL[strategy], step=TWO_WINDOWS, config=config)
        # Every process has the whole model afterwards, not the first alone.
        torch.save(result, tmp_path / f"result {rank}")

    single = replace(config, micro_batch_size=groups_of(strategy))
    (tmp_path / "alone").mkdir()
    alone = trained(tmp_path / "alone", None, step=TWO_WINDOWS, config=single)
    (tmp_path / "store").symlink_to(tmp_path / "alone" / "store")
    two_processes(work)
    for rank in range(2):
        assert_same_training(torch.load(tmp_path / f"result {rank}", weights_only=True), alone)
    assert any(name.startswith("learned.") for name in alone["gradients"]) == (options == "factors")
    assert any("lora_" in name for name in alone["gradients"]) == options.startswith("adapters")


@pytest.mark.parametrize("options", ["factors", "adapters, norms, embeddings"])
def test_what_is_split_resumes_alone_and_split_again(tmp_path: Path, options: str) -> None:
    config = replace(FINETUNE, checkpoint_every=1, micro_batch_size=1, **OPTIONS[options])
    single = replace(config, micro_batch_size=2)
    (tmp_path / "alone").mkdir()
    alone = trained(tmp_path / "alone", None, step=TWO_WINDOWS, config=single)
    (tmp_path / "store").symlink_to(tmp_path / "alone" / "store")

    def work(rank: int, last: int | None) -> None:
        try:
            result = trained(tmp_path, PARALLEL["fsdp"], step=TWO_WINDOWS, config=config, last=last)
        except _Stop:
            return
        torch.save(result, tmp_path / f"result {rank}")

    two_processes(lambda rank: work(rank, 2))
    split, whole = (
        WholeCheckpointIO().load_checkpoint(path / "state" / "last.ckpt") for path in (tmp_path, tmp_path / "alone")
    )
    assert split["state_dict"].keys() == whole["state_dict"].keys()
    with pytest.raises(_Stop):
        trained(tmp_path, None, step=TWO_WINDOWS, config=single, last=3)
    two_processes(lambda rank: work(rank, None))
    assert_same_training(torch.load(tmp_path / "result 0", weights_only=True), alone)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_trained_beside_bfloat16_weights_can_be_split(tmp_path: Path, precision: str) -> None:
    """All in float32, since split weights that are trained together must share a dtype."""
    config = replace(FINETUNE, precision=precision, micro_batch_size=1, **OPTIONS["adapters, norms, embeddings"])

    def work(rank: int) -> None:
        _, rows = train(tmp_path, step=SHORT, config=config, model=tiny_llama().bfloat16(), parallel=PARALLEL["fsdp"])
        assert all(math.isfinite(row["loss"]) for row in rows)

    # The store is made here, since both processes would.
    train(tmp_path, step=replace(STEP, steps=1))
    (tmp_path / "state" / "last.ckpt").unlink(missing_ok=True)
    two_processes(work)


def test_split_weights_are_gathered_in_bfloat16_layer_by_layer(tmp_path: Path) -> None:
    """Beside their float32 shards: one layer at a time, whose input is in bfloat16 too."""
    config = replace(FINETUNE, precision="bf16-mixed", activation_checkpointing="full")
    (tmp_path / "alone").mkdir()
    alone = trained(tmp_path / "alone", None, config=replace(config, precision="32-true", micro_batch_size=4))
    (tmp_path / "store").symlink_to(tmp_path / "alone" / "store")

    def work(rank: int) -> None:
        gathered: list[int] = []
        dtypes: set[torch.dtype] = set()

        def look(layer: Any, args: Any) -> None:
            weights = [other.mlp.up_proj.weight for other in layers]
            whole = [weight for weight in weights if not isinstance(weight, DTensor)]
            gathered.append(len(whole))
            dtypes.update((args[0].dtype, *(weight.dtype for weight in whole)))

        layers: list[Any] = []
        original = FinetuneModule.configure_model

        def configured(module: FinetuneModule) -> None:
            original(module)
            layers[:] = module.model.model.layers
            for layer in layers:
                layer.register_forward_pre_hook(look)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FinetuneModule, "configure_model", configured)
            result = trained(tmp_path, PARALLEL["fsdp"], config=config)
        assert len(layers) > 1
        assert set(gathered) == {1}
        assert dtypes == {torch.bfloat16}
        assert {gradient.dtype for gradient in result["gradients"].values()} == {torch.float32}
        # bfloat16 has eight bits.
        assert relative_error(result["losses"], alone["losses"]) < 2**-8
        assert relative_error(result["norms"][:1], alone["norms"][:1]) < 2**-4

    two_processes(work)


@pytest.mark.slow
def test_a_head_that_divides_its_logits_is_trained_split_as_by_one_process(tmp_path: Path) -> None:
    def losses(folder: Path, parallel: ParallelConfig | None, config: FinetuneConfig) -> list[float]:
        with smooth_adam():
            rows = train(
                folder, step=SHORT, config=config, model=tiny_of("granite", logits_scaling=8.0), parallel=parallel
            )[1]
        return [row["loss"] for row in rows]

    (tmp_path / "alone").mkdir()
    alone = losses(tmp_path / "alone", None, replace(FINETUNE, micro_batch_size=4))
    (tmp_path / "store").symlink_to(tmp_path / "alone" / "store")

    def work(rank: int) -> None:
        tolerance = len(alone) * loss_rounding(tiny_of("granite", logits_scaling=8.0), 4 * 48)
        assert relative_error(losses(tmp_path, PARALLEL["fsdp+context"], FINETUNE), alone) < tolerance

    two_processes(work)


def test_a_split_model_is_trained_by_the_next_step_of_the_schedule(tmp_path: Path) -> None:
    def both(folder: Path, parallel: ParallelConfig | None, config: FinetuneConfig) -> list[float]:
        model = tiny_llama()
        with smooth_adam():
            rows = train(folder, step=SHORT, config=config, model=model, parallel=parallel)[1]
            (folder / "next").mkdir(exist_ok=True)
            if not (folder / "next" / "store").exists():
                (folder / "next" / "store").symlink_to(folder / "store")
            rows += train(folder / "next", step=SHORT, config=config, model=model, parallel=parallel)[1]
        return [row["loss"] for row in rows]

    (tmp_path / "alone").mkdir()
    alone = both(tmp_path / "alone", None, replace(FINETUNE, micro_batch_size=4))
    for folder in (tmp_path, tmp_path / "next"):
        folder.mkdir(exist_ok=True)
        (folder / "store").symlink_to(tmp_path / "alone" / "store")

    def work(rank: int) -> None:
        tolerance = len(alone) * loss_rounding(tiny_llama(), 4 * 48)
        assert relative_error(both(tmp_path, PARALLEL["fsdp"], FINETUNE), alone) < tolerance

    two_processes(work)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp+context", marks=pytest.mark.slow)])
def test_a_training_resumes_on_another_number_of_devices(alone: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    """Two devices, one, and where that takes long two again."""
    config = replace(FINETUNE, checkpoint_every=1, micro_batch_size=1)

    def work(rank: int, last: int | None) -> None:
        try:
            result = trained(tmp_path, PARALLEL[strategy], config=config, last=last)
        except _Stop:
            return
        if rank == 0:
            torch.save(result, tmp_path / "result")

    train(tmp_path, step=replace(STEP, steps=1))
    two_processes(lambda rank: work(rank, 2))
    if strategy == "ddp":
        result = trained(tmp_path, None, config=replace(config, micro_batch_size=4))
    else:
        with pytest.raises(_Stop):
            trained(tmp_path, None, config=replace(config, micro_batch_size=4), last=3)
        two_processes(lambda rank: work(rank, None))
        result = torch.load(tmp_path / "result", weights_only=True)
    assert_same_training(result, alone)


def test_rows_and_lengths_that_do_not_divide_give_one_line(tmp_path: Path) -> None:
    two, context = PARALLEL["ddp"], PARALLEL["context"]
    with pytest.raises(ValueError, match="3 rows cannot be shared by 2 groups of devices; finetune's rows must be a"):
        train(tmp_path, step=replace(STEP, batch_size=3), parallel=two)
    with pytest.raises(ValueError, match=r"rows of 46 tokens cannot be shared by 2 devices; .* multiple of 4"):
        train(tmp_path, step=replace(STEP, length=46), parallel=context)


def test_processes_with_other_inputs_are_refused_before_the_first_step(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with pytest.raises(ValueError, match=r"found of_0/state for process 0 and of_1/state for process 1; give all"):
            train(tmp_path / f"of_{rank}", step=STEP, parallel=PARALLEL["ddp"])
        assert not list((tmp_path / f"of_{rank}" / "state").glob("*.ckpt"))

    for rank in (0, 1):
        token_store(tmp_path / f"of_{rank}" / "store")
    two_processes(work)
