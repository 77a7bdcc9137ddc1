"""Training on several devices is training on one: two real processes under gloo, for every strategy."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from processes import fresh
from ropewalk.config import FinetuneConfig, FinetuneStepConfig, LoraConfig, ParallelConfig
from ropewalk.corpus.segments import Rows
from ropewalk.finetune.gathered import Slices, documents_of
from ropewalk.finetune.module import FinetuneModule
from ropewalk.finetune.share import Share, shared_loss
from ropewalk.finetune.windows import read_long
from ropewalk.models.loss import targets_of
from ropewalk.rope import RopeScaling, current_scaling, extend, rotary_shape
from tiny_models import ROPE_MODELS, tiny_llama, token_rows
from tiny_runs import EOS, FINETUNE, STEP, train

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
TINY = {"hidden_size": 32, "intermediate_size": 48}


def scaled(model: Any) -> Any:
    shape = rotary_shape(model)
    pairs = shape.rotary_dim // 2
    factors = tuple(1.0 + 3.0 * pair / pairs for pair in range(pairs))
    return extend(model, RopeScaling(factors, 64, 256, n_hat=N_HAT, attention_factor=1.1))


def scaled_of(model: Any) -> RopeScaling:
    found = current_scaling(model)
    assert found is not None
    return found


def two_processes(work: Callable[[int], None], *, count: int = 2) -> None:
    """``work(rank)`` in two processes, or ``count``, that find each other as those of torchrun do."""
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
    both = [fresh(lambda rank=rank: process(rank)) for rank in range(count)]  # type: ignore[misc]
    for one in both:
        one.join(240)
    codes = [one.exitcode for one in both]
    for one in both:
        one.kill()
    assert codes == [0] * count


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


def loss_and_gradients(model: Any, share: Share, rows: str) -> dict[str, torch.Tensor]:
    """Of long rows, of packed ones, or of both in one step, the packed ones under the original RoPE.

    Answers are of long rows whose recalled values count on their own.
    """
    if rows == "answers":
        loss = shared_loss(share, model, recall_rows(), answer_weight=0.3)
        model.zero_grad()
        loss.backward()
        return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}
    parts = []
    if rows != "packed":
        tokens = share.rows(token_rows(64, rows=4))
        parts.append(share.summed_loss(model, tokens, targets_of(tokens)))
    if rows != "long":
        if rows == "mixed":
            extend(model, replace(scaled_of(model), factors=(1.0,) * len(scaled_of(model).factors), n_hat=0))
        tokens, positions = share.rows(token_rows(64, rows=4)), share.rows(positions_of_documents(4))
        targets = targets_of(tokens).masked_fill(positions[:, 1:] == 0, -100)
        parts.append(share.summed_loss(model, tokens, targets, positions=positions))
    loss = share.mean(*(torch.stack(part).sum() for part in zip(*parts, strict=True)))
    model.zero_grad()
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad.clone() for name, p in model.named_parameters()}}


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
            share = Share(rank, 2, Slices(rank % context, context, attention=attention))
            found = loss_and_gradients(scaled(ROPE_MODELS[name](**TINY)), share, rows)
            for value in found.values():
                dist.all_reduce(value)
                value /= 2
            if rank == 0:
                torch.save(found, folder / f"{name} {rows} {context} {attention}")
        dist.destroy_process_group()

    two_processes(work)
    return folder


@pytest.mark.parametrize(("name", "rows", "context", "attention"), SHARED)
def test_loss_and_gradients_are_those_of_one_process(
    shared_runs: Path, name: str, rows: str, context: int, attention: str
) -> None:
    expected = loss_and_gradients(scaled(ROPE_MODELS[name](**TINY)), Share(), rows)
    found = torch.load(shared_runs / f"{name} {rows} {context} {attention}", weights_only=True)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_shared_answers_count_as_one_process_counts_them() -> None:
    model, rows = scaled(tiny_llama(**TINY)), recall_rows()
    with torch.no_grad():
        whole = read_long(model, rows.ids, rows.answers)
        assert whole.answer_loss is not None
        found = shared_loss(Share(), model, rows, answer_weight=0.3)
        none = shared_loss(Share(), model, rows, answer_weight=0.0)
    torch.testing.assert_close(found, whole.loss + 0.3 * whole.answer_loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(none, whole.loss, atol=1e-5, rtol=0)


def test_attention_that_leaves_documents_would_be_seen() -> None:
    model = scaled(tiny_llama(**TINY))
    tokens, positions = token_rows(64, rows=4), positions_of_documents(4)
    with torch.no_grad():
        whole, packed = (
            Share().summed_loss(model, tokens, targets_of(tokens), positions=found)[0] / tokens.numel()
            for found in (None, positions)
        )
    assert abs(whole - packed) > 1e-3


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
    """Losses of a training, the gradients of its first step, and its weights; it stops when ``last`` is asked for."""
    gradients: dict[str, torch.Tensor] = {}
    norms: list[float] = []

    def keep(module: FinetuneModule, optimizer: Any) -> None:
        original(module, optimizer)
        if not gradients:
            for name, parameter in module.named_parameters():
                if parameter.grad is None:
                    continue
                whole = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
                gradients[name] = whole.clone()
        norms.append(module.gradient_norm)

    def before(number: int) -> None:
        if number == last:
            raise _Stop

    original = FinetuneModule.on_before_optimizer_step
    FinetuneModule.on_before_optimizer_step = keep  # type: ignore[method-assign, assignment]
    scaling = replace(scaled(tiny_llama()).model.rotary_emb.scaling)
    try:
        model, rows = train(folder, step=step, config=config, scaling=scaling, parallel=parallel, before_step=before)
    finally:
        FinetuneModule.on_before_optimizer_step = original  # type: ignore[method-assign]
    return {
        "losses": torch.tensor([row["loss"] for row in rows]),
        "norms": torch.tensor(norms),
        "gradients": gradients,
        "factors": list(scaled_of(model).factors),
        "weights": {name: parameter.detach().clone() for name, parameter in model.named_parameters()},
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(tmp_path_factory.mktemp("alone"), None, config=replace(FINETUNE, rows_at_once=4))


@pytest.mark.parametrize("strategy", PARALLEL)
def test_a_strategy_trains_as_one_process_does(alone: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    def work(rank: int) -> None:
        found = trained(tmp_path, PARALLEL[strategy])
        if rank == 0:
            torch.save(found, tmp_path / "found")

    # The store is made here, since both processes would.
    train(tmp_path, step=replace(STEP, steps=1))
    (tmp_path / "state" / "last.ckpt").unlink(missing_ok=True)
    two_processes(work)
    found = torch.load(tmp_path / "found", weights_only=True)
    torch.testing.assert_close(found["losses"][0], alone["losses"][0], atol=1e-5, rtol=0)
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, atol=1e-5, rtol=0)
    # Adam divides by a gradient's own size, so what comes after the first step differs by more.
    torch.testing.assert_close(found["losses"], alone["losses"], atol=1e-4, rtol=0)
    for name, weight in alone["weights"].items():
        assert found["weights"][name].shape == weight.shape
        assert ((found["weights"][name] - weight).abs() < 1e-4).float().mean() > 0.98


OPTIONS: dict[str, dict[str, Any]] = {
    # In a pass of one row per group, one has a long row and another a short one, or all have short ones.
    "mixed": {"short_share": 0.5},
    "mixed, recomputed": {"short_share": 0.5, "activations": "recompute"},
    "recomputed": {"activations": "recompute"},
    "factors": {"short_share": 0.5, "learn_factors": True, "factors_learning_rate": 0.02},
    "adapters": {"lora": LoraConfig(rank=4, alpha=8.0)},
    "adapters, norms, embeddings": {"lora": LoraConfig(rank=4, alpha=8.0, embeddings=True, norms=True)},
}
"""Of fine-tuning, on rows of two windows."""
TWO_WINDOWS = replace(SHORT, length=128)


def groups_of(strategy: str) -> int:
    return PARALLEL[strategy].devices // PARALLEL[strategy].context


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        *((options, strategy) for options in ("mixed", "factors") for strategy in PARALLEL if "ring" not in strategy),
        ("mixed, recomputed", "fsdp"),
        ("recomputed", "fsdp+ring"),
        ("adapters", "ddp"),
        ("adapters", "fsdp"),
        ("adapters, norms, embeddings", "fsdp+context"),
    ],
)
def test_a_strategy_trains_every_option_as_one_process_does(tmp_path: Path, options: str, strategy: str) -> None:
    config = replace(FINETUNE, rows_at_once=1, **OPTIONS[options])

    def work(rank: int) -> None:
        found = trained(tmp_path, PARALLEL[strategy], step=TWO_WINDOWS, config=config)
        # All have the whole model afterwards, not the first alone.
        torch.save(found, tmp_path / f"found {rank}")

    one = replace(config, rows_at_once=groups_of(strategy))
    (tmp_path / "alone").mkdir()
    alone = trained(tmp_path / "alone", None, step=TWO_WINDOWS, config=one)
    (tmp_path / "store").symlink_to(tmp_path / "alone" / "store")
    two_processes(work)
    for rank in range(2):
        found = torch.load(tmp_path / f"found {rank}", weights_only=True)
        torch.testing.assert_close(found["losses"], alone["losses"], atol=1e-5, rtol=0)
        torch.testing.assert_close(found["norms"], alone["norms"], atol=1e-5, rtol=1e-4)
        assert found["gradients"].keys() == alone["gradients"].keys()
        for kind in ("gradients", "weights"):
            for name, value in alone[kind].items():
                torch.testing.assert_close(found[kind][name], value, atol=1e-5, rtol=1e-4)
        assert found["factors"] == pytest.approx(alone["factors"], abs=1e-5)
    assert any(name.startswith("learned.") for name in alone["gradients"]) == (options == "factors")
    assert any("lora_" in name for name in alone["gradients"]) == options.startswith("adapters")


@pytest.mark.parametrize("options", ["factors", "adapters, norms, embeddings"])
def test_what_is_split_goes_on_alone_and_split_again(tmp_path: Path, options: str) -> None:
    config = replace(FINETUNE, checkpoint_every=1, rows_at_once=1, **OPTIONS[options])
    one = replace(config, rows_at_once=2)
    (tmp_path / "alone").mkdir()
    alone = trained(tmp_path / "alone", None, step=TWO_WINDOWS, config=one)
    (tmp_path / "store").symlink_to(tmp_path / "alone" / "store")

    def work(rank: int, last: int | None) -> None:
        try:
            found = trained(tmp_path, PARALLEL["fsdp"], step=TWO_WINDOWS, config=config, last=last)
        except _Stop:
            return
        torch.save(found, tmp_path / f"found {rank}")

    two_processes(lambda rank: work(rank, 2))
    kept = torch.load(tmp_path / "state" / "last.ckpt", weights_only=True)["state_dict"]
    assert kept.keys() == torch.load(tmp_path / "alone" / "state" / "last.ckpt", weights_only=True)["state_dict"].keys()
    with pytest.raises(_Stop):
        trained(tmp_path, None, step=TWO_WINDOWS, config=one, last=3)
    two_processes(lambda rank: work(rank, None))
    found = torch.load(tmp_path / "found 0", weights_only=True)
    torch.testing.assert_close(found["losses"], alone["losses"], atol=1e-5, rtol=0)
    assert found["factors"] == pytest.approx(alone["factors"], abs=1e-5)
    for name, value in alone["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, atol=1e-5, rtol=1e-4)


def test_a_split_model_is_trained_by_the_next_step_of_the_schedule(tmp_path: Path) -> None:
    def both(folder: Path, parallel: ParallelConfig | None, config: FinetuneConfig) -> list[float]:
        model = tiny_llama()
        rows = train(folder, step=SHORT, config=config, model=model, parallel=parallel)[1]
        (folder / "next").mkdir(exist_ok=True)
        if not (folder / "next" / "store").exists():
            (folder / "next" / "store").symlink_to(folder / "store")
        rows += train(folder / "next", step=SHORT, config=config, model=model, parallel=parallel)[1]
        return [row["loss"] for row in rows]

    (tmp_path / "alone").mkdir()
    alone = both(tmp_path / "alone", None, replace(FINETUNE, rows_at_once=4))
    for folder in (tmp_path, tmp_path / "next"):
        folder.mkdir(exist_ok=True)
        (folder / "store").symlink_to(tmp_path / "alone" / "store")

    def work(rank: int) -> None:
        assert both(tmp_path, PARALLEL["fsdp"], FINETUNE) == pytest.approx(alone, abs=1e-5)

    two_processes(work)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp+context", marks=pytest.mark.slow)])
def test_a_training_goes_on_on_another_number_of_devices(alone: dict[str, Any], tmp_path: Path, strategy: str) -> None:
    """Two devices, one, and where that takes long two again."""
    config = replace(FINETUNE, checkpoint_every=1, rows_at_once=1)

    def work(rank: int, last: int | None) -> None:
        try:
            found = trained(tmp_path, PARALLEL[strategy], config=config, last=last)
        except _Stop:
            return
        if rank == 0:
            torch.save(found, tmp_path / "found")

    train(tmp_path, step=replace(STEP, steps=1))
    two_processes(lambda rank: work(rank, 2))
    if strategy == "ddp":
        found = trained(tmp_path, None, config=replace(config, rows_at_once=4))
    else:
        with pytest.raises(_Stop):
            trained(tmp_path, None, config=replace(config, rows_at_once=4), last=3)
        two_processes(lambda rank: work(rank, None))
        found = torch.load(tmp_path / "found", weights_only=True)
    torch.testing.assert_close(found["losses"], alone["losses"], atol=1e-4, rtol=0)


def test_rows_and_lengths_that_do_not_divide_give_one_line(tmp_path: Path) -> None:
    two, context = PARALLEL["ddp"], PARALLEL["context"]
    with pytest.raises(ValueError, match="3 rows cannot be shared by 2 groups of devices; finetune's rows must be a"):
        train(tmp_path, step=replace(STEP, rows=3), parallel=two)
    with pytest.raises(ValueError, match=r"rows of 46 tokens cannot be shared by 2 devices; .* multiple of 4"):
        train(tmp_path, step=replace(STEP, length=46), parallel=context)
