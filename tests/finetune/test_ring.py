"""Keys and values that go around a ring of devices give what one device computes: outputs and gradients."""

import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from finetune.test_devices import two_processes
from processes import start
from ropewalk.finetune.gathered import SlicedRows, Slices, gathered_attention
from ropewalk.finetune.ring import attend, attend_backward, obstacle, ring_attention
from tolerances import relative_error, rounding


def queries_keys_values(length: int = 64) -> list[Tensor]:
    """Two rows; four query heads on two of keys and values."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, heads, length, 16, generator=generator) for heads in (4, 2, 2)]


def part_of(whole: Tensor, slices: Slices) -> Tensor:
    """The device's pieces of (rows, heads, length, dimension)."""
    pieces = whole.chunk(2 * slices.count, dim=2)
    return torch.cat([pieces[piece] for piece in slices.pieces], dim=2).clone()


def check(rank: int, count: int, backend: str, device: str, dtype: torch.dtype) -> None:
    """Raise AssertionError unless this device of a ring computes its part of what one device does."""
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend)
    slices = Slices(rank, count)
    whole = [tensor.to(device, dtype) for tensor in queries_keys_values()]
    parts = [part_of(tensor, slices).requires_grad_() for tensor in whole]
    wish = torch.randn(whole[0].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    output = ring_attention(parts[0], parts[1], parts[2], group=None, scaling=0.3)
    (output * part_of(wish, slices)).sum().backward()
    for tensor in whole:
        tensor.requires_grad_()
    expected = F.scaled_dot_product_attention(*whole, is_causal=True, scale=0.3, enable_gqa=True)
    (expected * wish).sum().backward()
    # A score adds up the head's dimensions and an output the row's tokens; a gradient does both once more, and keys
    # and values add up the two queries that share them.
    summands = whole[0].shape[2] + whole[0].shape[3]
    assert relative_error(output, part_of(expected, slices)) < rounding(summands, dtype)
    for part, tensor in zip(parts, whole, strict=True):
        assert tensor.grad is not None
        assert relative_error(part.grad, part_of(tensor.grad, slices)) < rounding(2 * summands + 2, dtype)
    dist.destroy_process_group()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_ring_computes_what_one_device_does(count: int) -> None:
    two_processes(lambda rank: check(rank, count, "gloo", "cpu", torch.float32), count=count)


def check_smaller_values(rank: int) -> None:
    """Raise AssertionError unless gathered values of another size than keys give what one device computes."""
    dist.init_process_group("gloo")
    slices, generator = Slices(rank, 2, attention="gathered"), torch.Generator().manual_seed(0)
    whole = [torch.randn(2, heads, 64, size, generator=generator) for heads, size in ((4, 24), (4, 24), (4, 16))]
    parts = [part_of(tensor, slices).requires_grad_() for tensor in whole]
    output, _ = gathered_attention(None, parts[0], parts[1], parts[2], None, sliced=SlicedRows(slices))
    wish = torch.randn(whole[2].shape, generator=generator)
    (output.transpose(1, 2) * part_of(wish, slices)).sum().backward()
    for tensor in whole:
        tensor.requires_grad_()
    expected = F.scaled_dot_product_attention(*whole, is_causal=True)
    (expected * wish).sum().backward()
    assert relative_error(output.transpose(1, 2), part_of(expected, slices)) < rounding(64 + 24)
    for part, tensor in zip(parts, whole, strict=True):
        assert tensor.grad is not None
        assert relative_error(part.grad, part_of(tensor.grad, slices)) < rounding(2 * (64 + 24))
    dist.destroy_process_group()


def test_values_may_be_smaller_than_keys() -> None:
    two_processes(check_smaller_values, count=2)


# Processes of their own, since one that has used a GPU cannot be forked.
GPU = """
import os, sys
rank, port, backend, device, dtype = sys.argv[1:]
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
import torch
from finetune.test_ring import check
check(int(rank), 2, backend, device, getattr(torch, dtype))
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_ring_of_gpus_computes_what_one_does() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(GPU, rank, port, "nccl", "cuda", "bfloat16") for rank in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


def test_gpus_kernels_take_what_the_ring_hands_them() -> None:
    """Without a GPU, on tensors that have shapes alone."""
    query, key, value = (tensor.to("meta", torch.bfloat16) for tensor in queries_keys_values())
    out, sums, *rest = attend(query, key, value, is_causal=True, scale=0.3)
    assert out.shape == query.shape
    assert sums.shape == query.shape[:3]
    gradients = attend_backward(
        grad_out=out, query=query, key=key, value=value, out=out, logsumexp=sums, is_causal=True, scale=0.3, rest=rest
    )
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize(
    ("query", "options", "told"),
    [
        (torch.zeros(1, 1, 4, 16), {"masked": True}, "no documents within a row and no sliding window"),
        (torch.zeros(1, 1, 4, 16), {"dropout": 0.1}, "no dropout, found 0.1"),
    ],
)
def test_what_a_ring_cannot_serve_is_told(query: Tensor, options: dict[str, Any], told: str) -> None:
    values: dict[str, Any] = {"masked": False, "dropout": 0.0}
    assert obstacle(query, query, query, **values) is None
    assert told in str(obstacle(query, query, query, **{**values, **options}))


def test_a_ring_that_is_asked_for_and_cannot_serve_is_one_line() -> None:
    rows = SlicedRows(Slices(0, 2, attention="ring"), documents=torch.ones(2, 64, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"^parallel\.attention=ring cannot be used here: it knows no documents .*auto$"
    ):
        gathered_attention(None, *queries_keys_values(), None, sliced=rows)
