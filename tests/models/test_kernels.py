"""Which kernel computes attention, cell by cell, and that none of them is given copies of grouped keys."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import bias
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from ropewalk.models import kernels
from ropewalk.models.kernels import AttentionInputs, Kernel, Mask, attention, flash_obstacle, kernel
from ropewalk.models.layerwise import layerwise_states
from ropewalk.models.loss import mean_loss
from ropewalk.models.prefill import chunks, kv_cache
from ropewalk.rope import RopeScaling, RotaryEmbedding, extend, find_rotary, rotary_shape
from ropewalk.rope.query_scales import query_scales
from tiny_models import ROPE_MODELS, tiny_llama, token_rows
from tolerances import relative_error, rounding

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
T4, A100, RTX3090, RTX4090, H100, RTX5090 = (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)
LENGTH, HEADS, KEY_HEADS = 24, 8, 2


def tensors(
    head_dim: int, value_dim: int, *, dtype: torch.dtype, device: str, key_heads: int, new: int
) -> list[Tensor]:
    """Queries of the last ``new`` tokens, keys and values of one row."""
    generator = torch.Generator(device).manual_seed(0) if device != "meta" else None
    sizes = ((HEADS, new, head_dim), (key_heads, LENGTH, head_dim), (key_heads, LENGTH, value_dim))
    return [torch.randn(1, *size, dtype=FLOAT, device=device, generator=generator).to(dtype) for size in sizes]


def mask_of(new: int, device: str = "cpu", heads: int = 1) -> Tensor:
    """A causal mask whose first key is left out for every second head, if there are several."""
    mask = torch.ones(1, heads, new, LENGTH, dtype=torch.bool, device=device).tril(LENGTH - new)
    mask[:, 1::2, :, 0] = False
    return mask


DIMENSIONS = [(64, 64), (96, 96), (72, 72), (60, 60), (256, 256), (512, 512), (192, 128), (18, 18)]


@pytest.mark.parametrize(("dtype", "sizes"), product((HALF, BF16, FLOAT, DOUBLE), DIMENSIONS))
@pytest.mark.parametrize("key_heads", [KEY_HEADS, HEADS])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("mask", [Mask.NONE, Mask.CAUSAL, Mask.DENSE])
def test_the_kernel_of_a_processor_is_the_one_that_torch_chooses(
    dtype: torch.dtype, sizes: tuple[int, int], key_heads: int, dropout: float, mask: Mask
) -> None:
    parts = tensors(*sizes, dtype=dtype, device="cpu", key_heads=key_heads, new=LENGTH)
    dense, causal = (mask_of(LENGTH) if mask is Mask.DENSE else None), mask is Mask.CAUSAL
    inputs = AttentionInputs.of(*parts, mask=dense, causal=causal, dropout=dropout)
    assert inputs.mask is mask
    chosen = torch._fused_sdp_choice(
        *parts, attn_mask=dense, is_causal=causal, dropout_p=dropout, enable_gqa=key_heads < HEADS
    )
    assert kernel(inputs) is {0: Kernel.MATH, 1: Kernel.CPU_FLASH}[chosen]


FLASH, EFFICIENT, MATH = Kernel.FLASH, Kernel.EFFICIENT, Kernel.MATH
GPU = AttentionInputs("cuda", BF16, 64, 64, Mask.CAUSAL, A100)
GPU_CELLS: list[tuple[dict[str, Any], Kernel]] = [
    *(({"capability": card, "dtype": BF16}, FLASH) for card in (A100, RTX4090, H100, RTX5090)),
    *(({"capability": card, "dtype": HALF}, FLASH) for card in (A100, RTX4090, H100, RTX5090)),
    *(({"capability": card, "dtype": FLOAT}, EFFICIENT) for card in (T4, A100, RTX4090, H100, RTX5090)),
    *(({"capability": card, "dtype": DOUBLE}, MATH) for card in (T4, A100, H100)),
    ({"capability": T4, "dtype": HALF}, EFFICIENT),
    ({"capability": T4, "dtype": BF16}, MATH),
    ({"mask": Mask.NONE}, FLASH),
    ({"mask": Mask.LOWER_RIGHT}, FLASH),
    ({"mask": Mask.LOWER_RIGHT, "dtype": FLOAT}, EFFICIENT),
    ({"mask": Mask.DENSE}, EFFICIENT),
    ({"mask": Mask.DENSE, "dtype": FLOAT}, EFFICIENT),
    ({"dropout": 0.1, "gradient": True}, FLASH),
    # torch fills up head dimensions for flash attention, and no others.
    ({"head_dim": 60, "value_dim": 60}, FLASH),
    ({"head_dim": 60, "value_dim": 60, "mask": Mask.DENSE}, MATH),
    ({"head_dim": 60, "value_dim": 60, "dtype": FLOAT}, EFFICIENT),
    ({"head_dim": 18, "value_dim": 18, "dtype": FLOAT}, MATH),
    ({"head_dim": 18, "value_dim": 18, "dtype": FLOAT, "capability": T4}, EFFICIENT),
    ({"head_dim": 256, "value_dim": 256}, FLASH),
    ({"head_dim": 256, "value_dim": 256, "gradient": True, "capability": RTX4090}, FLASH),
    ({"head_dim": 224, "value_dim": 224, "gradient": True, "capability": RTX4090}, EFFICIENT),
    ({"head_dim": 224, "value_dim": 224, "gradient": True, "capability": A100}, FLASH),
    ({"head_dim": 256, "value_dim": 256, "gradient": True, "dropout": 0.1, "capability": RTX3090}, EFFICIENT),
    # Gemma-4's and DeepSeek's heads.
    ({"head_dim": 512, "value_dim": 512}, EFFICIENT),
    ({"head_dim": 192, "value_dim": 128}, EFFICIENT),
    ({"has_flash": False}, EFFICIENT),
    ({"device": "mps"}, MATH),
]


@pytest.mark.parametrize(("changes", "expected"), GPU_CELLS, ids=lambda value: str(value))
def test_the_kernel_of_a_gpu(changes: dict[str, Any], expected: Kernel) -> None:
    inputs = replace(GPU, **changes)
    assert kernel(inputs) is expected
    if inputs.device == "cuda":
        assert (flash_obstacle(inputs) is None) is (expected is FLASH)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch tells the rules of GPUs on one alone")
@pytest.mark.parametrize(("dtype", "sizes"), product((HALF, BF16, FLOAT, DOUBLE), DIMENSIONS))
@pytest.mark.parametrize("mask", [Mask.NONE, Mask.CAUSAL, Mask.DENSE])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_kernel_of_this_gpu_is_the_one_that_torch_chooses(
    dtype: torch.dtype, sizes: tuple[int, int], mask: Mask, gradient: bool
) -> None:
    parts = tensors(*sizes, dtype=dtype, device="cuda", key_heads=KEY_HEADS, new=LENGTH)
    parts = [part.requires_grad_(gradient) for part in parts]
    dense, causal = (mask_of(LENGTH, "cuda") if mask is Mask.DENSE else None), mask is Mask.CAUSAL
    expected = kernel(AttentionInputs.of(*parts, mask=dense, causal=causal))
    if not expected.takes_groups:
        parts[0] = parts[0][:, :: HEADS // KEY_HEADS]
    chosen = torch._fused_sdp_choice(*parts, attn_mask=dense, is_causal=causal, enable_gqa=expected.takes_groups)
    # cuDNN's attention takes the place of the others on some GPUs.
    assert chosen == {MATH: 0, FLASH: 1, EFFICIENT: 2}[expected] or (chosen == 3 and expected is not MATH)


class Operations(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    ("dtype", "sizes", "new", "expected"),
    [
        (BF16, (64, 64), 4, FLASH),
        (BF16, (64, 64), LENGTH, FLASH),
        (BF16, (60, 60), 4, FLASH),
        (FLOAT, (64, 64), 4, EFFICIENT),
        (FLOAT, (64, 64), LENGTH, EFFICIENT),
        (BF16, (192, 128), 4, EFFICIENT),
        (BF16, (512, 512), LENGTH, EFFICIENT),
    ],
)
def test_a_gpu_is_given_grouped_keys_as_they_are(
    dtype: torch.dtype,
    sizes: tuple[int, int],
    new: int,
    expected: Kernel,
    gradient: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [p.requires_grad_(gradient) for p in tensors(*sizes, dtype=dtype, device="meta", key_heads=2, new=new)]
    inputs = replace(AttentionInputs.of(*parts, mask=None, causal=True), device="cuda", capability=A100)
    assert kernel(inputs) is expected
    monkeypatch.setattr(kernels, "kernel", lambda _: expected)
    given, ops = list[dict[str, Any]](), Operations()

    def rules(params: Any) -> bool:
        query, heads = params.query, {params.key.shape[1], params.value.shape[1]}
        # Only flash attention takes fewer heads of keys than of queries.
        return heads == {query.shape[1]} or (params.enable_gqa and expected is FLASH)

    monkeypatch.setattr(bias, "can_use_flash_attention", lambda params: expected is FLASH and rules(params))
    monkeypatch.setattr(bias, "can_use_efficient_attention", rules)

    def called(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        given.append(options)
        assert key is parts[1]
        assert value is parts[2]
        if isinstance(options["attn_mask"], bias.CausalBias):
            with ops:
                return bias.CausalBias._dispatch(query, key, value, **options)
        assert options["is_causal"]
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", called)
    output = attention(*parts, causal=True, scaling=0.3)
    assert output.shape == (1, HEADS, new, sizes[1])
    calls = 1 if expected is FLASH else HEADS // KEY_HEADS
    assert [options.get("enable_gqa", False) for options in given] == [expected is FLASH] * calls
    if new < LENGTH:
        name = {FLASH: "_scaled_dot_product_flash_attention", EFFICIENT: "_efficient_attention_forward"}[expected]
        assert [op for op in ops.names if "attention" in op] == [name] * calls
    assert not {"bmm", "tril"}.intersection(ops.names)


@pytest.mark.numeric
@pytest.mark.parametrize("new", [1, LENGTH])
@pytest.mark.parametrize("mask_heads", [None, 1, HEADS])
def test_each_head_of_a_group_alone_gives_the_same_attention(new: int, mask_heads: int | None) -> None:
    """With values of another size than keys, which no kernel of processors takes."""
    query, key, value = tensors(64, 48, dtype=FLOAT, device="cpu", key_heads=KEY_HEADS, new=new)
    for part in (query, key, value):
        part.requires_grad_()
    mask = mask_of(new, heads=mask_heads) if mask_heads else None
    output = attention(query, key, value, mask=mask, causal=mask is None, scaling=0.3)
    repeated = [repeat_kv(part, HEADS // KEY_HEADS) for part in (key, value)]
    whole = mask_of(new) if mask is None else mask
    expected = F.scaled_dot_product_attention(query, *repeated, attn_mask=whole, scale=0.3)
    assert relative_error(output, expected) < rounding(64 + LENGTH)
    wish = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((output * wish).sum(), (query, key, value))
    references = torch.autograd.grad((expected * wish).sum(), (query, key, value))
    for gradient, reference in zip(gradients, references, strict=True):
        assert relative_error(gradient, reference) < rounding(2 * (64 + LENGTH))


def test_large_scores_are_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(kernels, "_LARGE_SCORES", HEADS * LENGTH**2 * 4)
    parts = tensors(56, 40, dtype=FLOAT, device="cpu", key_heads=KEY_HEADS, new=LENGTH)
    for _ in range(2):
        attention(*parts, causal=True)
    attention(*tensors(56, 56, dtype=FLOAT, device="cpu", key_heads=KEY_HEADS, new=LENGTH), causal=True)
    (record,) = caplog.records
    assert record.message == (
        "attention in float32 with head dimensions 56 and 40 takes the memory of all scores, 0.0 GiB in a layer; "
        "set evaluate.chunk_tokens lower, or take a GPU"
    )


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"capability": T4}, "set model.dtype=float16"),
        ({"dtype": DOUBLE}, "set model.dtype=bfloat16"),
        ({"device": "cpu", "dropout": 0.1}, "train without attention dropout"),
    ],
)
def test_the_message_says_what_to_set(changes: dict[str, Any], remedy: str, caplog: pytest.LogCaptureFixture) -> None:
    inputs = replace(GPU, **changes)
    long = torch.empty(1, 32, 2**15, 64, dtype=inputs.dtype, device="meta")
    kernels.tell_large_scores(inputs, long, long)
    assert [record.message.endswith(f"GiB in a layer; {remedy}") for record in caplog.records] == [True]


def attended(run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> set[tuple[torch.dtype, ...]]:
    """dtypes of the queries, keys and values that attention is given."""
    dtypes: set[tuple[torch.dtype, ...]] = set()
    for name in ("sdpa", "ropewalk_prefill"):
        original = AttentionInterface._global_mapping[name]

        def function(module: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            dtypes.add(tuple(part.dtype for part in args[:3]))
            return original(module, *args, **kwargs)

        monkeypatch.setitem(AttentionInterface._global_mapping, name, function)
    run()
    return dtypes


@pytest.mark.parametrize("make", ROPE_MODELS.values(), ids=ROPE_MODELS.keys())
def test_queries_and_keys_are_of_the_models_dtype_in_every_reading(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = make().to(BF16), token_rows(40)
    pairs = rotary_shape(model).rotary_dim // 2
    scales = query_scales(model)
    even = ((1.1,) * scales.heads,) * scales.layers
    extend(model, RopeScaling((2.0,) * pairs, 16, 64, n_hat=4, attention_factor=1.2, query_scales=even))

    def run() -> None:
        with torch.no_grad():
            model(rows)
            list(chunks(model, rows, kv_cache(model, 40), chunk=16))
            list(layerwise_states(model, rows, chunk=16))
        rotary = find_rotary(model)[1]
        assert isinstance(rotary, RotaryEmbedding)
        rotary.factors = torch.full((pairs,), 2.0, requires_grad=True)
        scales.set(torch.ones(scales.layers, scales.heads, requires_grad=True))
        mean_loss(model, rows).backward()

    assert attended(run, monkeypatch) == {(BF16,) * 3}


def test_autocast_gives_the_kernel_one_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotating gives float32 queries and keys under it, beside values in bfloat16."""
    model, rows = tiny_llama(), token_rows(40)

    def run() -> None:
        with torch.autocast("cpu", dtype=BF16), torch.no_grad():
            list(chunks(model, rows, kv_cache(model, 40), chunk=16))

    assert attended(run, monkeypatch) == {(FLOAT, FLOAT, BF16)}
    with torch.autocast("cpu", dtype=BF16):
        query, key, value = tensors(16, 16, dtype=FLOAT, device="cpu", key_heads=KEY_HEADS, new=LENGTH)
        assert attention(query, key, value.to(BF16), causal=True).dtype == BF16
