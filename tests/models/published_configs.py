"""What config.json of published checkpoints says of positions and attention, and what their cards say of windows.

Keys that these do not depend on (tokens, dropout, dtype) are left out, as are some that the defaults of a class give.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Checkpoint:
    """A published config.json, and what is to be read from it."""

    config: dict[str, Any]
    rotary_dim: int
    base: float
    original_length: int
    window: int
    """Window in tokens before an extension: that of the checkpoint's own scaling, or the original one."""
    method: str = "none"
    last_factor: float = 1.0
    attention_factor: float = 1.0


def _llama3(factor: float) -> dict[str, Any]:
    return {
        "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }  # fmt: skip


def _sizes(kind: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


_PHI_LONG = [
    1.0800000429153442, 1.1100000143051147, 1.1399999856948853, 1.340000033378601, 1.5899999141693115,
    1.600000023841858, 1.6200000047683716, 2.620000123977661, 3.2300000190734863, 3.2300000190734863,
    4.789999961853027, 7.400000095367432, 7.700000286102295, 9.09000015258789, 12.199999809265137,
    17.670000076293945, 24.46000099182129, 28.57000160217285, 30.420001983642578, 30.840002059936523,
    32.590003967285156, 32.93000411987305, 42.320003509521484, 44.96000289916992, 50.340003967285156,
    50.45000457763672, 57.55000305175781, 57.93000411987305, 58.21000289916992, 60.1400032043457,
    62.61000442504883, 62.62000274658203, 62.71000289916992, 63.1400032043457, 63.1400032043457,
    63.77000427246094, 63.93000411987305, 63.96000289916992, 63.970001220703125, 64.02999877929688,
    64.06999969482422, 64.08000183105469, 64.12000274658203, 64.41000366210938, 64.4800033569336,
    64.51000213623047, 64.52999877929688, 64.83999633789062,
]  # fmt: skip
_PHI_SHORT = [
    1.0, 1.0199999809265137, 1.0299999713897705, 1.0299999713897705, 1.0499999523162842, 1.0499999523162842,
    1.0499999523162842, 1.0499999523162842, 1.0499999523162842, 1.0699999332427979, 1.0999999046325684,
    1.1099998950958252, 1.1599998474121094, 1.1599998474121094, 1.1699998378753662, 1.2899998426437378,
    1.339999794960022, 1.679999828338623, 1.7899998426437378, 1.8199998140335083, 1.8499997854232788,
    1.8799997568130493, 1.9099997282028198, 1.9399996995925903, 1.9899996519088745, *[2.0199997425079346] * 6,
    *[2.0299997329711914] * 9, 2.0799996852874756, 2.0899996757507324, 2.189999580383301, 2.2199995517730713,
    2.5899994373321533, 2.729999542236328, 2.749999523162842, 2.8399994373321533,
]  # fmt: skip
_QWEN2_5_7B = _sizes("qwen2", 3584, 18944, 28, 28, 4, use_sliding_window=False, max_window_layers=28, vocab_size=152064)

CHECKPOINTS = {
    "Llama-3.1-8B": Checkpoint(
        _sizes(
            "llama", 4096, 14336, 32, 32, 8, vocab_size=128256, max_position_embeddings=131072, rope_theta=500000.0,
            rope_scaling=_llama3(8.0),
        ),
        128, 500_000.0, 8192, 131_072, "llama3", 8.0,
    ),
    # 16 times the original window under a factor of 32.
    "Llama-3.2-1B": Checkpoint(
        _sizes(
            "llama", 2048, 8192, 16, 32, 8, head_dim=64, vocab_size=128256, max_position_embeddings=131072,
            rope_theta=500000.0, tie_word_embeddings=True,
            rope_scaling=_llama3(32.0),
        ),
        64, 500_000.0, 8192, 131_072, "llama3", 32.0,
    ),
    "Yi-34B-200K": Checkpoint(
        _sizes(
            "llama", 7168, 20480, 60, 56, 8, vocab_size=64000, max_position_embeddings=200000, rope_theta=5000000.0,
            rope_scaling=None,
        ),
        128, 5e6, 200_000, 200_000,
    ),
    "Qwen2.5-7B": Checkpoint(
        {**_QWEN2_5_7B, "max_position_embeddings": 131072, "rope_theta": 1000000.0, "sliding_window": 131072},
        128, 1e6, 131_072, 131_072,
    ),
    # The card: without dual chunk attention, accuracy may degrade beyond 262,144 tokens.
    "Qwen2.5-7B-Instruct-1M": Checkpoint(
        {
            **_QWEN2_5_7B, "max_position_embeddings": 1010000, "rope_theta": 10000000.0, "sliding_window": 32768,
            "dual_chunk_attention_config": {
                "chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144
            },
        },
        128, 1e7, 262_144, 262_144,
    ),
    "Mistral-7B-v0.1": Checkpoint(
        _sizes(
            "mistral", 4096, 14336, 32, 32, 8, vocab_size=32000, max_position_embeddings=32768, rope_theta=10000.0,
            sliding_window=4096,
        ),
        128, 10_000.0, 4096, 4096,
    ),
    "Mistral-7B-v0.3": Checkpoint(
        _sizes(
            "mistral", 4096, 14336, 32, 32, 8, vocab_size=32768, max_position_embeddings=32768, rope_theta=1000000.0,
            sliding_window=None,
        ),
        128, 1e6, 32_768, 32_768,
    ),
    # Heads, window and bases are the class's defaults.
    "gemma-3-4b": Checkpoint(
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
            },
        },
        256, 1e6, 16_384, 131_072, "pi", 8.0,
    ),
    "phi-4": Checkpoint(
        _sizes(
            "phi3", 5120, 17920, 40, 40, 10, vocab_size=100352, max_position_embeddings=16384, rope_theta=250000,
            original_max_position_embeddings=16384, rope_scaling=None, sliding_window=None,
        ),
        128, 250_000.0, 16_384, 16_384,
    ),
    "Phi-3.5-mini-instruct": Checkpoint(
        _sizes(
            "phi3", 3072, 8192, 32, 32, 32, vocab_size=32064, max_position_embeddings=131072, rope_theta=10000.0,
            original_max_position_embeddings=4096, sliding_window=262144,
            rope_scaling={"long_factor": _PHI_LONG, "short_factor": _PHI_SHORT, "type": "longrope"},
        ),
        96, 10_000.0, 4096, 131_072, "longrope", 64.83999633789062, 1.190238,
    ),
    "Qwen3-8B": Checkpoint(
        _sizes(
            "qwen3", 4096, 12288, 36, 32, 8, head_dim=128, vocab_size=151936, max_position_embeddings=40960,
            rope_theta=1000000, rope_scaling=None, sliding_window=None, use_sliding_window=False, max_window_layers=36,
        ),
        128, 1e6, 40_960, 40_960,
    ),
    "SmolLM2-135M": Checkpoint(
        _sizes(
            "llama", 576, 1536, 30, 9, 3, vocab_size=49152, max_position_embeddings=8192, rope_theta=100000,
            rope_scaling=None, rope_interleaved=False,
        ),
        64, 100_000.0, 8192, 8192,
    ),
    "DeepSeek-V3": Checkpoint(
        _sizes(
            "deepseek_v3", 7168, 18432, 61, 128, 128, vocab_size=129280, max_position_embeddings=163840,
            rope_theta=10000, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
            v_head_dim=128, n_routed_experts=256, moe_intermediate_size=2048, first_k_dense_replace=3,
            auto_map={
                "AutoConfig": "configuration_deepseek.DeepseekV3Config",
                "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM",
            },
            rope_scaling={
                "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096, "type": "yarn",
            },
        ),
        64, 10_000.0, 4096, 163_840, "yarn", 40.0,
    ),
    "gpt-oss-20b": Checkpoint(
        _sizes(
            "gpt_oss", 2880, 2880, 24, 64, 8, head_dim=64, vocab_size=201088, num_local_experts=32,
            experts_per_token=4, initial_context_length=4096, max_position_embeddings=131072, rope_theta=150000,
            sliding_window=128, layer_types=["sliding_attention", "full_attention"] * 12,
            rope_scaling={
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                "rope_type": "yarn", "truncate": False,
            },
        ),
        64, 150_000.0, 4096, 131_072, "yarn", 32.0, 1.3465736,
    ),
    "Olmo-3-1025-7B": Checkpoint(
        _sizes(
            "olmo3", 4096, 11008, 32, 32, 32, vocab_size=100278, max_position_embeddings=65536, rope_theta=500000,
            sliding_window=4096, layer_types=[*["sliding_attention"] * 3, "full_attention"] * 8,
            rope_scaling={
                "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
                "original_max_position_embeddings": 8192, "rope_type": "yarn",
            },
        ),
        128, 500_000.0, 8192, 65_536, "yarn", 8.0, 1.2079441541679836,
    ),
    # text_config of the model that also sees.
    "Ministral-3-8B-Base-2512": Checkpoint(
        _sizes(
            "ministral3", 4096, 14336, 34, 32, 8, head_dim=128, vocab_size=131072, max_position_embeddings=262144,
            sliding_window=None,
            rope_parameters={
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
                "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "rope_theta": 1000000.0,
                "rope_type": "yarn", "type": "yarn",
            },
        ),
        128, 1e6, 16_384, 262_144, "yarn", 16.0,
    ),
    "LLaMA-2-7B-32K": Checkpoint(
        _sizes(
            "llama", 4096, 11008, 32, 32, 32, vocab_size=32000, max_position_embeddings=32768,
            rope_scaling={"factor": 8.0, "type": "linear"},
        ),
        128, 10_000.0, 4096, 32_768, "pi", 8.0,
    ),
    "vicuna-7b-v1.5-16k": Checkpoint(
        _sizes(
            "llama", 4096, 11008, 32, 32, 32, vocab_size=32000, max_position_embeddings=4096,
            max_sequence_length=16384, rope_scaling={"factor": 4.0, "type": "linear"},
        ),
        128, 10_000.0, 4096, 16_384, "pi", 4.0,
    ),
    "Hunyuan-7B-Instruct": Checkpoint(
        _sizes(
            "hunyuan_v1_dense", 4096, 14336, 32, 32, 8, head_dim=128, vocab_size=128167, rope_theta=10000.0,
            max_position_embeddings=32768,
            rope_scaling={
                "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                "type": "dynamic",
            },
        ),
        128, 10_000.0, 32_768, 32_768, "ntk", 1000.0,
    ),
    "GLM-4-9B-0414": Checkpoint(
        _sizes(
            "glm4", 4096, 13696, 40, 32, 2, head_dim=128, vocab_size=151552, max_position_embeddings=32768,
            partial_rotary_factor=0.5, rope_theta=10000.0,
        ),
        64, 10_000.0, 32_768, 32_768,
    ),
    # The card: 128K tokens. Only Cohere states the window in this way.
    "c4ai-command-r-v01": Checkpoint(
        _sizes(
            "cohere", 8192, 22528, 40, 64, 64, vocab_size=256000, max_position_embeddings=8192, rope_theta=8000000.0,
            model_max_length=131072, logit_scale=0.0625,
        ),
        128, 8e6, 131_072, 131_072,
    ),
    "DeepSeek-V2-Lite": Checkpoint(
        _sizes(
            "deepseek_v2", 2048, 10944, 27, 16, 16, vocab_size=102400, max_position_embeddings=163840,
            rope_theta=10000, q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
            v_head_dim=128, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
            moe_intermediate_size=1408, first_k_dense_replace=1, topk_method="greedy", n_group=1, topk_group=1,
            auto_map={"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
            rope_scaling={
                "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 4096, "type": "yarn",
            },
        ),
        64, 10_000.0, 4096, 163_840, "yarn", 40.0,
    ),
    "stablelm-3b-4e1t": Checkpoint(
        _sizes(
            "stablelm", 2560, 6912, 32, 32, 32, vocab_size=50304, max_position_embeddings=4096, rope_theta=10000,
            partial_rotary_factor=0.25,
        ),
        20, 10_000.0, 4096, 4096,
    ),
    # Window and base are the class's defaults.
    "falcon-7b": Checkpoint(
        {
            "model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32,
            "vocab_size": 65024, "alibi": False, "multi_query": True, "parallel_attn": True, "bias": False,
        },
        64, 10_000.0, 2048, 2048,
    ),
    "pythia-1b": Checkpoint(
        {
            "model_type": "gpt_neox", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 8, "vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
        },
        64, 10_000.0, 2048, 2048,
    ),
    "phi-2": Checkpoint(
        _sizes(
            "phi", 2560, 10240, 32, 32, 32, vocab_size=51200, max_position_embeddings=2048, rope_theta=10000.0,
            partial_rotary_factor=0.4,
        ),
        32, 10_000.0, 2048, 2048,
    ),
}  # fmt: skip
"""By the name on the hub."""
