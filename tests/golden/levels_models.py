"""Headers of models whose hyper-parameters are public, for which llama.cpp told the types of each level.

Shapes stand in numpy order: `(rows, row_length)`, experts first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quantcore.ggufkv import Value, ValueType, array, boolean, f32, string, u32

Shapes = dict[str, tuple[int, ...]]
HParam = int | float | bool | list[int]
Layer = Callable[[int], Shapes]


@dataclass(frozen=True)
class Model:
    """`layer` returns the tensors of one layer without `blk.N.`; `outside` are all others."""

    architecture: str
    layers: int
    width: int
    layer: Layer
    outside: Shapes
    hparams: Mapping[str, HParam] = field(default_factory=dict)


def _attention(width: int, q: int, kv: int) -> Shapes:
    names = ("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight")
    return dict(zip(names, ((width,), (q, width), (kv, width), (kv, width), (width, q)), strict=True))


def _fused(width: int, rows: int) -> Shapes:
    return {
        "attn_norm.weight": (width,),
        "attn_qkv.weight": (rows, width),
        "attn_output.weight": (width, width),
    }


def _feed_forward(width: int, ffn: int, *, gate: bool = True, end: str = "") -> Shapes:
    gates: Shapes = {f"ffn_gate{end}.weight": (ffn, width)} if gate else {}
    return gates | {f"ffn_up{end}.weight": (ffn, width), f"ffn_down{end}.weight": (width, ffn)}


def _experts(width: int, ffn: int, n: int, *, shared: int = 0, gate: bool = True) -> Shapes:
    matrices = _feed_forward(width, ffn, gate=gate, end="_exps")
    stacks: Shapes = {name: (n, *shape) for name, shape in matrices.items()}
    both = stacks | (_feed_forward(width, shared, gate=gate, end="_shexp") if shared else {})
    return {"ffn_norm.weight": (width,), "ffn_gate_inp.weight": (n, width)} | both


def _outside(width: int, vocabulary: int, *, tied: bool = False) -> Shapes:
    table = (vocabulary, width)
    shapes: Shapes = {"token_embd.weight": table, "output_norm.weight": (width,)}
    return shapes if tied else {**shapes, "output.weight": table}


def _model(
    architecture: str, layers: int, width: int, heads: int, kv_heads: int | list[int], ffn: int,
    vocabulary: int, layer: Layer, *, tied: bool = False, outside: Shapes | None = None, **hparams: HParam,
) -> Model:  # fmt: skip
    numbers: dict[str, HParam] = {
        "context_length": 4096,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
    }
    given = {key.replace("__", "."): value for key, value in hparams.items()}
    return Model(
        architecture, layers, width, layer,
        _outside(width, vocabulary, tied=tied) | (outside or {}), numbers | given,
    )  # fmt: skip


def _dense(
    architecture: str, layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocabulary: int,
    *, head: int = 0, tied: bool = False, **hparams: HParam,
) -> Model:  # fmt: skip
    size = head or width // heads
    block = _attention(width, heads * size, kv_heads * size)
    block |= {"ffn_norm.weight": (width,), **_feed_forward(width, ffn)}
    given = {"rope__dimension_count": size, "attention__key_length": size, **hparams}
    return _model(
        architecture, layers, width, heads, kv_heads, ffn, vocabulary, lambda _: block, tied=tied, **given
    )


def _mixture(
    architecture: str, layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocabulary: int,
    *, experts: int, head: int = 0, shared: int = 0, dense: tuple[int, int] = (0, 0), every: int = 1,
    **hparams: HParam,
) -> Model:  # fmt: skip
    """Return a mixture of experts whose first `dense[0]` layers are dense, of `dense[1]` wide; see `every`.

    Of the others, only each `every`-th has experts.
    """
    size = head or width // heads
    attention = _attention(width, heads * size, kv_heads * size)

    def layer(n: int) -> Shapes:
        if n < dense[0] or (n + 1) % every:
            return attention | {"ffn_norm.weight": (width,), **_feed_forward(width, dense[1])}
        return attention | _experts(width, ffn, experts, shared=shared)

    given = {
        "rope__dimension_count": size, "attention__key_length": size, "expert_count": experts,
        "expert_used_count": 2, "expert_feed_forward_length": ffn, **hparams,
    }  # fmt: skip
    return _model(architecture, layers, width, heads, kv_heads, dense[1] or ffn, vocabulary, layer, **given)


def _deepseek_v3(n: int) -> Shapes:
    width = 7168
    block: Shapes = {
        "attn_norm.weight": (width,),
        "attn_q_a.weight": (1536, width),
        "attn_q_b.weight": (24576, 1536),
        "attn_kv_a_mqa.weight": (576, width),
        "attn_k_b.weight": (128, 512, 128),
        "attn_v_b.weight": (128, 128, 512),
        "attn_output.weight": (width, 16384),
    }
    return block | (_experts(width, 2048, 256, shared=2048) if n >= 3 else _feed_forward(width, 18432))


def _deepseek_v2_lite(n: int) -> Shapes:
    width = 2048
    block: Shapes = {
        "attn_q.weight": (3072, width),
        "attn_kv_a_mqa.weight": (576, width),
        "attn_kv_b.weight": (4096, 512),
        "attn_output.weight": (width, 2048),
    }
    return block | (_experts(width, 1408, 64, shared=2816) if n else _feed_forward(width, 10944))


def _jamba(n: int) -> Shapes:
    width = 4096
    mamba: Shapes = {
        "ssm_in.weight": (16384, width),
        "ssm_conv1d.weight": (8192, 4),
        "ssm_x.weight": (288, 8192),
        "ssm_dt.weight": (8192, 256),
        "ssm_a": (8192, 16),
        "ssm_out.weight": (width, 8192),
    }
    mixer = _attention(width, 4096, 1024) if n % 8 == 4 else mamba
    return mixer | (_experts(width, 14336, 16) if n % 2 else _feed_forward(width, 14336))


def _granite_hybrid(n: int) -> Shapes:
    width = 4096
    mamba: Shapes = {
        "ssm_in.weight": (16768, width),
        "ssm_conv1d.weight": (8448, 4),
        "ssm_norm.weight": (1, 8192),
        "ssm_out.weight": (width, 8192),
    }
    mixer = _attention(width, 4096, 1024) if n % 10 == 5 else mamba
    return mixer | _experts(width, 768, 72, shared=1536)


# M is a state-space layer, E one of experts, * one of attention.
_NEMOTRON = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"


def _nemotron(n: int) -> Shapes:
    width = 2688
    return {
        "M": {
            "ssm_in.weight": (10304, width),
            "ssm_conv1d.weight": (6144, 4),
            "ssm_out.weight": (width, 4096),
        },
        "E": _experts(width, 1856, 128, shared=3712, gate=False),
        "*": _attention(width, 4096, 256),
    }[_NEMOTRON[n]]


def _qwen_next(n: int) -> Shapes:
    width = 2048
    attention = _attention(width, 8192, 512) | {"attn_output.weight": (width, 4096)}
    linear: Shapes = {
        "attn_qkv.weight": (8192, width),
        "attn_gate.weight": (4096, width),
        "ssm_ba.weight": (64, width),
        "ssm_conv1d.weight": (8192, 4),
        "ssm_out.weight": (width, 4096),
    }
    return (attention if n % 4 == 3 else linear) | _experts(width, 512, 512, shared=512)


def _qwen_35(width: int, q: int, kv: int, keys: int, values: int, rest: Shapes) -> Layer:
    """Return layers of which each fourth has attention with a gate, the others a gated delta rule."""
    attention = _attention(width, 2 * q, kv) | {"attn_output.weight": (width, q)}
    linear: Shapes = {
        "attn_norm.weight": (width,),
        "attn_qkv.weight": (2 * keys + values, width),
        "attn_gate.weight": (values, width),
        "ssm_conv1d.weight": (2 * keys + values, 4),
        "ssm_beta.weight": (values // 128, width),
        "ssm_alpha.weight": (values // 128, width),
        "ssm_out.weight": (width, values),
    }
    return lambda n: (attention if n % 4 == 3 else linear) | rest


def _step_35(n: int) -> Shapes:
    """Every fourth layer sees everything with 64 heads, the others a window with 96."""
    width, heads = 4096, 96 if n % 4 else 64
    attention = _attention(width, 128 * heads, 1024) | {"attn_gate.weight": (heads, width)}
    return attention | (_experts(width, 1280, 288, shared=1280) if n > 2 else _feed_forward(width, 11264))


_DELTA: Mapping[str, HParam] = {
    "rope__dimension_sections": [11, 11, 10, 0], "rope__dimension_count": 64, "attention__key_length": 256,
    "attention__value_length": 256, "full_attention_interval": 4, "ssm__conv_kernel": 4,
    "ssm__state_size": 128, "ssm__group_count": 16,
}  # fmt: skip
_LFM2_ATTENTION = frozenset({2, 5, 8, 10, 12, 14})


def _lfm2(n: int) -> Shapes:
    width = 2048
    convolution: Shapes = {
        "shortconv.conv.weight": (width, 3),
        "shortconv.in_proj.weight": (3 * width, width),
        "shortconv.out_proj.weight": (width, width),
    }
    mixer = _attention(width, 2048, 512) if n in _LFM2_ATTENTION else convolution
    return mixer | _feed_forward(width, 8192)


def _gemma_3n(_n: int) -> Shapes:
    width = 2048
    return _attention(width, 2048, 512) | {
        **_feed_forward(width, 16384),
        "altup_router.weight": (4, width),
        "altup_predict_coef.weight": (16, 4),
        "laurel_l.weight": (64, width),
        "laurel_r.weight": (width, 64),
        "inp_gate.weight": (256, width),
        "proj.weight": (width, 256),
    }


_GEMMA_3N_OUTSIDE: Shapes = {
    "altup_proj.weight": (3, 2048, 2048),
    "altup_unembd_proj.weight": (3, 2048, 2048),
    "per_layer_token_embd.weight": (262144, 8960),
    "per_layer_model_proj.weight": (8960, 2048),
}


def _rwkv7(_n: int) -> Shapes:
    width = 2048
    block: Shapes = {
        f"time_mix_{part}.weight": (width, width) for part in ("receptance", "key", "value", "output")
    }
    for part, rank in {"w": 96, "a": 96, "v": 64, "g": 256}.items():
        block |= {f"time_mix_{part}1.weight": (rank, width), f"time_mix_{part}2.weight": (width, rank)}
    block["time_mix_lerp_fused.weight"] = (6, 1, 1, width)
    return block | {"channel_mix_key.weight": (8192, width), "channel_mix_value.weight": (width, 8192)}


def _t5_outside() -> Shapes:
    width, heads = 512, 8
    shapes: Shapes = {"enc.blk.0.attn_rel_b.weight": (32, heads), "dec.blk.0.attn_rel_b.weight": (32, heads)}
    for side in ("enc", "dec"):
        for n in range(6):
            block = _attention(width, 512, 512) | _feed_forward(width, 2048, gate=False)
            if side == "dec":
                block |= {f"cross_attn_{part}.weight": (width, 512) for part in "qkv"}
            shapes |= {f"{side}.blk.{n}.{name}": shape for name, shape in block.items()}
    return shapes


def _plain_up_down(width: int, ffn: int, rows: int) -> Layer:
    return lambda _: _fused(width, rows) | _feed_forward(width, ffn, gate=False)


def _glm_next(n: int) -> Shapes:
    """Return the names that the architecture keeps or gives 8 bits; its sizes are no published model's."""
    width = 512
    linear: Shapes = {
        f"ssm_{part}.weight": (width, width) for part in ("f_a", "f_b", "g_a", "g_b", "beta", "out")
    }
    latent: Shapes = {
        "attn_q_a.weight": (256, width),
        "attn_q_b.weight": (width, 256),
        "attn_kv_a_mqa.weight": (256, width),
        "attn_k_b.weight": (4, 256, 256),
        "attn_v_b.weight": (4, 256, 256),
        "indexer.attn_q_b.weight": (256, 256),
        "indexer.attn_k.weight": (256, width),
        "indexer.proj.weight": (4, width),
    }
    mixed = (linear if n % 2 else latent) | {
        "hc_attn_fn.weight": (24, width),
        "attn_output.weight": (width, width),
    }
    last: Shapes = {"nextn.eh_proj.weight": (width, 2 * width)} if n == 7 else {}
    return mixed | last | _experts(width, 256, 8, shared=256)


def _bailing(n: int) -> Shapes:
    """Return stacks of matrices that are no experts; the sizes are no published model's."""
    width = 512
    block: Shapes = {"attn_q.weight": (width, width), "attn_output.weight": (width, width)}
    block |= {"attn_k_b.weight": (4, 256, 128), "attn_v_b.weight": (4, 128, 256)}
    return block | (_experts(width, 256, 16, shared=256) if n else _feed_forward(width, 1024))


_KDA: dict[str, HParam] = {
    "attention__key_length_mla": 128, "attention__value_length_mla": 128, "attention__q_lora_rank": 256,
    "attention__kv_lora_rank": 256, "ssm__conv_kernel": 4, "kda__head_dim": 128, "kda__safe_gate": True,
    "kda__gate_lower_bound": -5.0, "expert_feed_forward_length": 256, "expert_shared_count": 1,
    "leading_dense_block_count": 1, "expert_gating_func": 2, "expert_used_count": 2,
    "attention__indexer__head_count": 4, "attention__indexer__key_length": 64,
    "attention__indexer__top_k": 64, "attention__indexer__kpool": 2,
    "hyper_connection__count": 4, "hyper_connection__sinkhorn_iterations": 2,
    "hyper_connection__epsilon": 1e-5,
}  # fmt: skip
_MAMBA2 = {"ssm__conv_kernel": 4, "ssm__group_count": 1, "ssm__state_size": 128}

_MODELS: dict[str, Model] = {
    "tiny-novels-7m": _dense("llama", 6, 256, 8, 4, 768, 4096),
    "SmolLM2-135M": _dense("llama", 30, 576, 9, 3, 1536, 49152, tied=True),
    "Llama-3.1-8B": _dense("llama", 32, 4096, 32, 8, 14336, 128256),
    "Llama-3.1-70B": _dense("llama", 80, 8192, 64, 8, 28672, 128256),
    "Mixtral-8x7B": _mixture("llama", 32, 4096, 32, 8, 14336, 32000, experts=8),
    "Qwen2.5-0.5B": _dense("qwen2", 24, 896, 14, 2, 4864, 151936, tied=True),
    "Qwen2.5-72B": _dense("qwen2", 80, 8192, 64, 8, 29568, 152064),
    "Qwen3-0.6B": _dense("qwen3", 28, 1024, 16, 8, 3072, 151936, head=128),
    "Qwen3-14B": _dense("qwen3", 40, 5120, 40, 8, 17408, 151936),
    "Gemma-2-9B": _dense("gemma2", 42, 3584, 16, 8, 14336, 256000, head=256, tied=True),
    "gemma-3-4b-it": _dense("gemma3", 34, 2560, 8, 4, 10240, 262144, head=256, tied=True),
    "Gemma-3n-E4B": _model(
        "gemma3n", 35, 2048, 8, 2, 16384, 262144, _gemma_3n, tied=True, outside=_GEMMA_3N_OUTSIDE,
        attention__sliding_window=512,
    ),
    "Qwen3-235B-A22B": _mixture("qwen3moe", 94, 4096, 64, 4, 1536, 151936, experts=128, head=128),
    "Llama-4-Maverick": _mixture(
        "llama4", 48, 5120, 40, 8, 8192, 202048, experts=128, shared=8192, dense=(0, 16384), every=2,
        interleave_moe_layer_step=2,
    ),
    "gpt-oss-120b": _mixture(
        "gpt-oss", 36, 2880, 64, 8, 2880, 201088, experts=128, head=64, attention__sliding_window=128
    ),
    "GLM-4.6V": _mixture(
        "glm4moe", 46, 4096, 96, 8, 1408, 151552, experts=128, head=128, shared=1408, dense=(1, 10944),
        leading_dense_block_count=1, expert_shared_count=1, nextn_predict_layers=0,
    ),
    "DeepSeek-V3.1": _model(
        "deepseek2", 61, 7168, 128, 1, 18432, 129280, _deepseek_v3, expert_count=256, expert_used_count=8,
        expert_feed_forward_length=2048, expert_shared_count=1, leading_dense_block_count=3,
        attention__q_lora_rank=1536, attention__kv_lora_rank=512, vocab_size=129280,
        rope__dimension_count=64,
    ),
    "DeepSeek-V2-Lite": _model(
        "deepseek2", 27, 2048, 16, 16, 10944, 102400, _deepseek_v2_lite, expert_count=64,
        expert_used_count=6, expert_feed_forward_length=1408, expert_shared_count=2,
        leading_dense_block_count=1, attention__kv_lora_rank=512, vocab_size=102400,
        rope__dimension_count=64,
    ),
    "Jamba-1.5-Mini": _model(
        "jamba", 32, 4096, 32, [8 if n % 8 == 4 else 0 for n in range(32)], 14336, 65536, _jamba,
        expert_count=16, expert_used_count=2, ssm__conv_kernel=4, ssm__inner_size=8192, ssm__state_size=16,
        ssm__time_step_rank=256,
    ),
    "Granite-4.0-H-Small": _model(
        "granitehybrid", 40, 4096, 32, [8 if n % 10 == 5 else 0 for n in range(40)], 768, 100352,
        _granite_hybrid, tied=True, expert_count=72, expert_used_count=10, ssm__inner_size=8192,
        ssm__time_step_rank=128, **_MAMBA2,
    ),
    "Nemotron-Nano-3-30B-A3B": _model(
        "nemotron_h_moe", 52, 2688, 32, [2 if kind == "*" else 0 for kind in _NEMOTRON], 0, 131072, _nemotron,
        expert_count=128, expert_used_count=6, expert_feed_forward_length=1856, ssm__inner_size=4096,
        ssm__time_step_rank=64, expert_shared_feed_forward_length=3712, expert_shared_count=1, **_MAMBA2,
    ),
    "Qwen3-Coder-Next": _model(
        "qwen3next", 48, 2048, 16, 2, 5120, 151936, _qwen_next, expert_count=512, expert_used_count=10,
        expert_feed_forward_length=512, expert_shared_feed_forward_length=512, ssm__inner_size=4096,
        ssm__time_step_rank=32, rope__dimension_count=64, attention__key_length=256, **_MAMBA2,
    ),
    "Qwen3.5-397B-A17B": _model(
        "qwen35moe", 60, 4096, 32, 2, 0, 248320,
        _qwen_35(4096, 8192, 512, 2048, 8192, _experts(4096, 1024, 512, shared=1024)),
        expert_count=512, expert_used_count=10, expert_feed_forward_length=1024,
        expert_shared_feed_forward_length=1024, ssm__inner_size=8192, ssm__time_step_rank=64, **_DELTA,
    ),
    "Qwen3.6-27B": _model(
        "qwen35", 64, 5120, 24, 4, 17408, 248320,
        _qwen_35(5120, 6144, 1024, 2048, 6144, _feed_forward(5120, 17408)),
        ssm__inner_size=6144, ssm__time_step_rank=48, **_DELTA,
    ),
    "Step-3.5-Flash": _model(
        "step35", 45, 4096, [64 if n % 4 == 0 else 96 for n in range(45)], 8, 11264, 128896, _step_35,
        expert_count=288, expert_used_count=8, expert_feed_forward_length=1280,
        expert_shared_feed_forward_length=1280, attention__key_length=128, attention__value_length=128,
        rope__dimension_count=128, attention__sliding_window=512,
        attention__sliding_window_pattern=[int(n % 4 != 0) for n in range(45)],
    ),
    "LFM2-1.2B": _model(
        "lfm2", 16, 2048, 32, [8 if n in _LFM2_ATTENTION else 0 for n in range(16)], 8192, 65536, _lfm2,
        tied=True, shortconv__l_cache=3,
    ),
    "Phi-3-mini": _model(
        "phi3", 32, 3072, 32, 32, 8192, 32064,
        lambda _: _fused(3072, 9216) | {"ffn_up.weight": (16384, 3072), "ffn_down.weight": (3072, 8192)},
        rope__dimension_count=96,
    ),
    "Falcon-7B": _model("falcon", 32, 4544, 71, 1, 18176, 65024, _plain_up_down(4544, 18176, 4672)),
    "Falcon-40B": _model("falcon", 60, 8192, 128, 8, 32768, 65024, _plain_up_down(8192, 32768, 9216)),
    "GPT-NeoX-20B": _model(
        "gptneox", 44, 6144, 64, 64, 24576, 50432, _plain_up_down(6144, 24576, 18432),
        use_parallel_residual=True,
    ),
    "BLOOM-7B": _model(
        "bloom", 30, 4096, 32, 32, 16384, 250880, _plain_up_down(4096, 16384, 12288), tied=True,
    ),
    "RWKV7-1.5B": _model(
        "rwkv7", 24, 2048, 0, 0, 8192, 65536, _rwkv7, wkv__head_size=64, attention__decay_lora_rank=96,
        attention__iclr_lora_rank=96, attention__value_residual_mix_lora_rank=64,
        attention__gate_lora_rank=256,
    ),
    "GLM-5-next (small)": _model(
        "glm5-next", 8, 512, 4, 4, 1024, 4096, _glm_next, expert_count=8, **_KDA,
    ),
    "Bailing-3 (small)": _model(
        "bailingmoe3", 8, 512, 4, 4, 1024, 4096, _bailing, expert_count=16, **_KDA,
    ),
    "BGE-small": _model(
        "bert", 12, 384, 12, 12, 1536, 30522,
        lambda _: _attention(384, 384, 384) | _feed_forward(384, 1536, gate=False),
        tied=True, outside={"position_embd.weight": (512, 384), "token_types.weight": (2, 384)},
    ),
    "T5-small": _model(
        "t5", 6, 512, 8, 8, 2048, 32128, lambda _: {}, tied=True, outside=_t5_outside(),
        attention__key_length=64, attention__relative_buckets_count=32,
    ),
}  # fmt: skip
MODELS = tuple(_MODELS)


def shapes(model: str) -> Shapes:
    """Return tensor names and shapes of a model."""
    it = _MODELS[model]
    layers = {f"blk.{n}.{name}": shape for n in range(it.layers) for name, shape in it.layer(n).items()}
    return it.outside | layers


def metadata(model: str) -> dict[str, Value]:
    """Return the metadata that the rules of levels depend on, and what llama.cpp insists on."""
    it = _MODELS[model]
    numbers = {f"{it.architecture}.{key}": _value(value) for key, value in it.hparams.items()}
    return {"general.architecture": string(it.architecture), **numbers}


def _value(value: HParam) -> Value:
    if isinstance(value, bool):
        return boolean(value)
    if isinstance(value, list):
        return array(ValueType.INT32, value)
    return u32(value) if isinstance(value, int) else f32(value)
