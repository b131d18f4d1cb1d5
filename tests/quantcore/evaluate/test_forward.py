"""The forward pass against plain loops in float64, and that each of its parts matters."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from quantcore.architectures.windows import Windows
from quantcore.convert import open_huggingface
from quantcore.errors import Cancelled, InputError, UnknownArchitecture, UnreadableFile
from quantcore.evaluate import forward
from quantcore.evaluate.forward import map_logits, watch
from quantcore.evaluate.ops import attend, gelu, soft_cap
from quantcore.evaluate.rope import Rope, make_rope
from quantcore.evaluate.steps import CompiledSteps, Steps
from quantcore.ggufkv import f32, string, u32
from quantcore.tensors import Tensor
from tests.quantcore.convert.families import FAMILIES, config_of, safetensors_bytes, weights_of, write_model
from tests.quantcore.evaluate import reference
from tests.quantcore.kernels import compiled, needs_numba

TOKENS = np.random.default_rng(3).integers(0, 259, size=(3, 24)).astype(np.int32)
TOLERANCE = 2e-4  # of logits whose spread is several units


def ours(source, tokens=TOKENS, **options):
    return np.stack(map_logits(source, tokens, lambda _chunk, logits: logits, threads=1, **options))


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def source(tmp_path, family):
    write_model(tmp_path, family)
    return open_huggingface(tmp_path)


def far_from(logits, source, **options):
    return np.abs(ours(source, **options) - logits).max() > 100 * TOLERANCE


def with_tensor(source, name, change):
    """Return `source` with the rows of `name`, in every layer, changed; or without it if `change` is None."""

    def named(tensor):
        return tensor.name == name or tensor.name.endswith(f".{name}")

    def changed(tensor):
        rows = change(tensor.read())
        return Tensor(tensor.info, lambda start, stop: rows[start:stop])

    kept = [t for t in source.tensors if change is not None or not named(t)]
    return replace(source, tensors=tuple(changed(t) if named(t) else t for t in kept))


@pytest.mark.parametrize("kind", ["numpy", pytest.param("compiled", marks=needs_numba)])
def test_every_family_computes_what_plain_loops_compute(source, family, kind):
    logits = ours(source, steps=Steps() if kind == "numpy" else CompiledSteps(compiled()))

    for chunk, tokens in enumerate(TOKENS):
        expected = reference.logits(config_of(family), weights_of(config_of(family)), tokens)[:-1]
        assert np.abs(logits[chunk] - expected).max() < TOLERANCE
        assert expected.std() > 0.5


def test_a_later_first_gives_the_same_rows(source):
    assert np.allclose(ours(source, first=11), ours(source)[:, 11:], atol=TOLERANCE)


def test_chunks_do_not_see_each_other(source):
    assert np.allclose(ours(source)[2], ours(source, TOKENS[2:])[0], atol=TOLERANCE)


def heads_swapped(rows):
    first, second, *rest = np.split(rows, 4)
    return np.concatenate([second, first, *rest])


MISTAKES = {
    "a norm is taken for ones": ("attn_norm.weight", np.ones_like),
    "the norm between the parts is taken for ones": ("ffn_norm.weight", np.ones_like),
    "the last norm is taken for ones": ("output_norm.weight", np.ones_like),
    "heads of queries change places": ("attn_q.weight", heads_swapped),
    "heads of keys change places": ("attn_k.weight", lambda rows: np.roll(rows, len(rows) // 2, axis=0)),
    "heads of values change places": ("attn_v.weight", lambda rows: np.roll(rows, len(rows) // 2, axis=0)),
    "heads reach the output in another order": ("attn_output.weight", lambda rows: heads_swapped(rows.T).T),
    "rows of keys change places": ("attn_k.weight", lambda rows: rows[::-1]),
    "rows of the gate change places": ("ffn_gate.weight", lambda rows: rows[::-1]),
    "rows of embeddings change places": ("token_embd.weight", lambda rows: rows[::-1]),
    "rows of the output change places": ("output.weight", lambda rows: rows[::-1]),
    "the output is taken for the embeddings": ("output.weight", None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_shows(tmp_path, mistake):
    """Each part is far from without effect: what is wrong about it cannot hide below the tolerance."""
    write_model(tmp_path, "llama")
    source = open_huggingface(tmp_path)

    assert far_from(ours(source), with_tensor(source, *MISTAKES[mistake]))


def test_a_rope_of_the_other_kind_shows(tmp_path, monkeypatch):
    write_model(tmp_path, "llama")
    source = open_huggingface(tmp_path)
    logits, rotate = ours(source), Rope.rotate

    monkeypatch.setattr(
        Rope, "rotate", lambda self, *args, xp: rotate(replace(self, kind="neox"), *args, xp=xp)
    )

    assert far_from(logits, source)


def test_the_order_of_rows_of_q_matters(tmp_path):
    write_model(tmp_path, "mistral")
    source, rows = open_huggingface(tmp_path), weights_of(config_of("mistral"))

    raw = with_tensor(source, "blk.0.attn_q.weight", lambda _: rows["model.layers.0.self_attn.q_proj.weight"])

    assert far_from(ours(source), raw)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen2", "attn_q.bias"),
        ("qwen2", "attn_v.bias"),
        ("qwen3", "attn_k_norm.weight"),
        ("llama", "rope_freqs.weight"),
        ("qwen2moe", "ffn_gate_inp.weight"),
        ("qwen2moe", "ffn_gate_inp_shexp.weight"),
        ("qwen3moe", "ffn_down_exps.weight"),
        ("olmo2", "attn_q_norm.weight"),
        ("olmo2", "post_attention_norm.weight"),
        ("olmo2", "post_ffw_norm.weight"),
        ("phi3short", "rope_factors_short.weight"),
        ("phi3long", "rope_factors_long.weight"),
        ("stablelm", "attn_norm.bias"),
        ("stablelm", "ffn_norm.bias"),
        ("stablelm", "output_norm.bias"),
        ("stablelm", "attn_k.bias"),
        ("stablelm12b", "attn_q_norm.weight"),
        ("gemma2", "ffn_norm.weight"),
        ("gemma3", "attn_k_norm.weight"),
        ("gpt-oss", "attn_sinks.weight"),
        ("gpt-oss", "attn_output.bias"),
        ("gpt-oss", "ffn_gate_inp.bias"),
        ("gpt-oss", "ffn_gate_exps.bias"),
        ("gpt-oss", "ffn_up_exps.bias"),
        ("gpt-oss", "ffn_down_exps.bias"),
    ],
)
def test_biases_norms_and_rope_factors_matter(source, name):
    assert far_from(ours(source), with_tensor(source, name, lambda rows: np.full_like(rows, 1.25)))


@pytest.mark.parametrize("key", ["attention.scale", "embedding_scale", "residual_scale", "logit_scale"])
def test_the_scales_of_granite_matter(tmp_path, key):
    write_model(tmp_path, "granite")
    source = open_huggingface(tmp_path)

    changed = replace(source, metadata={**source.metadata, f"granite.{key}": f32(1.5)})

    assert far_from(ours(source), changed)


def test_the_layers_that_rotate_nothing_matter(tmp_path, monkeypatch):
    write_model(tmp_path, "smollm3")
    source = open_huggingface(tmp_path)
    logits = ours(source)

    monkeypatch.setattr("quantcore.architectures.smollm3.EVERY", 3)

    assert far_from(logits, source)


def without(source, *keys):
    return replace(source, metadata={key: value for key, value in source.metadata.items() if key not in keys})


def test_lengths_of_experts_that_a_file_does_not_state_are_llama_cpps(tmp_path):
    """The whole length for the shared expert, and as much for all that a token uses."""
    write_model(tmp_path, "qwen2moe")
    config = json.loads((tmp_path / "config.json").read_text())
    lengths = {"intermediate_size": 72, "shared_expert_intermediate_size": 72, "moe_intermediate_size": 24}
    (tmp_path / "config.json").write_text(json.dumps(config | lengths))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(weights_of(config | lengths)))
    source = open_huggingface(tmp_path)

    silent = without(
        source, "qwen2moe.expert_feed_forward_length", "qwen2moe.expert_shared_feed_forward_length"
    )

    assert np.array_equal(ours(silent), ours(source))


def test_a_length_of_a_shared_expert_that_a_family_does_not_have_changes_nothing(tmp_path):
    write_model(tmp_path, "qwen3moe")
    source = open_huggingface(tmp_path)
    odd = {**source.metadata, "qwen3moe.expert_shared_feed_forward_length": u32(24)}

    assert np.array_equal(ours(replace(source, metadata=odd)), ours(source))


def test_olmo_3_is_not_taken_for_olmo_2(tmp_path):
    write_model(tmp_path, "olmo2")
    source = open_huggingface(tmp_path)
    newer = {**source.metadata, "olmo2.attention.sliding_window": u32(4096)}

    with pytest.raises(
        UnknownArchitecture, match=r"olmo2 with olmo2\.attention\.sliding_window is not known"
    ):
        ours(replace(source, metadata=newer))


def test_other_layers_without_positions_are_refused(tmp_path):
    write_model(tmp_path, "smollm3")
    config = json.loads((tmp_path / "config.json").read_text()) | {"no_rope_layers": [1, 0, 1, 0]}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(UnknownArchitecture, match=r"config\.json: no_rope_layers are not every fourth layer"):
        open_huggingface(tmp_path)


def test_an_output_matrix_is_not_the_embeddings(tmp_path):
    write_model(tmp_path, "qwen3")
    source = open_huggingface(tmp_path)

    assert far_from(ours(source), with_tensor(source, "output.weight", None))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope.dimension_count", 10, "rope cannot turn 10 of 8 elements of a head"),
        ("rope.dimension_count", 4, r"rope_freqs\.weight must have 2 numbers"),
        ("attention.head_count_kv", 3, "4 heads cannot share 3 keys evenly"),
        ("block_count", 0, "llama.block_count is 0, not a size"),
    ],
)
def test_metadata_that_cannot_be_are_refused(tmp_path, key, value, said):
    write_model(tmp_path, "llama")
    source = open_huggingface(tmp_path)
    metadata = {**source.metadata, f"llama.{key}": u32(value)}

    with pytest.raises(InputError, match=said):
        ours(replace(source, metadata=metadata))


def test_an_unknown_family_is_named_with_its_file_and_field(tmp_path):
    write_model(tmp_path, "llama")
    source = open_huggingface(tmp_path)
    other = replace(source, metadata={**source.metadata, "general.architecture": string("mamba")})

    with pytest.raises(UnknownArchitecture, match=rf"{tmp_path}: general\.architecture: .* 'mamba'"):
        ours(other)


def test_a_token_without_an_embedding_is_refused(tmp_path):
    write_model(tmp_path, "llama")

    with pytest.raises(UnreadableFile, match="token 260 has no embedding; there are 260"):
        ours(open_huggingface(tmp_path), np.full((1, 8), 260, dtype=np.int32))


@pytest.mark.parametrize("changes", [{"rope.freq_base": f32(50.0)}, {"attention.head_count_kv": u32(1)}])
def test_rope_base_and_shared_keys_matter(tmp_path, changes):
    write_model(tmp_path, "linear")
    source = open_huggingface(tmp_path)
    other = replace(
        source, metadata={**source.metadata, **{f"llama.{key}": value for key, value in changes.items()}}
    )

    if "attention.head_count_kv" in changes:
        with pytest.raises(
            UnreadableFile, match=r"blk\.0\.attn_k\.weight is \[16, 32\], the metadata mean \[8, 32\]"
        ):
            ours(other)
    else:
        assert far_from(ours(source), other)


def test_the_two_kinds_of_rope_turn_different_pairs():
    angles = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    heads = np.random.default_rng(5).standard_normal((1, 3, 2, 8)).astype(np.float32)
    normal, neox = heads.copy(), heads.copy()

    Rope("normal", np.cos(angles), np.sin(angles)).rotate(normal)
    Rope("neox", np.cos(angles), np.sin(angles)).rotate(neox)

    order = [0, 4, 1, 5, 2, 6, 3, 7]
    shuffled = heads[..., order].copy()
    Rope("normal", np.cos(angles), np.sin(angles)).rotate(shuffled)
    assert np.allclose(shuffled, neox[..., order], atol=1e-6)
    assert not np.allclose(normal, neox, atol=0.1)


def test_yarn_keeps_fast_turns_slows_slow_ones_and_strengthens_all(tmp_path):
    write_model(tmp_path, "qwen3")
    source = open_huggingface(tmp_path)
    yarn = {"qwen3.rope.scaling.type": string("yarn"), "qwen3.rope.scaling.factor": f32(4.0)}
    yarn |= {"qwen3.rope.scaling.original_context_length": u32(512), "qwen3.rope.freq_base": f32(1e4)}
    scaled = make_rope(replace(source, metadata={**source.metadata, **yarn}), "neox", 16, 2)

    strength = 1 + 0.1 * np.log(4.0)
    angles = np.arctan2(scaled.sin[1], scaled.cos[1])
    plain = 1e4 ** -(np.arange(8) / 8)
    assert np.allclose(np.hypot(scaled.sin, scaled.cos), strength)
    assert np.allclose(angles[:1], plain[:1])
    assert np.allclose(angles[-2:], plain[-2:] / 4)


def test_details_of_yarn_that_llama_cpp_does_not_read_change_nothing(tmp_path):
    write_model(tmp_path, "yarn")
    source = open_huggingface(tmp_path)

    details = {"yarn_beta_fast": 2.0, "yarn_beta_slow": 0.5, "yarn_ext_factor": 0.5, "yarn_attn_factor": 3.0}
    stated = {f"qwen2.rope.scaling.{key}": f32(value) for key, value in details.items()}

    assert np.array_equal(ours(replace(source, metadata={**source.metadata, **stated})), ours(source))


def test_a_window_hides_what_lies_before_it():
    random = np.random.default_rng(6)
    q, k, v = (random.standard_normal((1, 9, 2, 4)).astype(np.float32) for _ in range(3))

    seen = attend(q, k, v, 0, window=3)[:, 8]
    alone = attend(q[:, 8:], k[:, 6:], v[:, 6:], 2)[:, 0]

    assert np.allclose(seen, alone, atol=1e-6)
    assert not np.allclose(seen, attend(q, k, v, 0)[:, 8], atol=1e-3)


def test_scores_and_logits_come_close_to_a_cap_and_never_pass_it():
    x = np.array([-1000, -3, 0, 0.01, 3, 1000], dtype=np.float32)
    capped = x.copy()

    soft_cap(capped, 5.0)
    soft_cap(x, None)

    assert np.allclose(capped, [-5, -5 * np.tanh(0.6), 0, 0.01, 5 * np.tanh(0.6), 5], atol=1e-5)
    assert x[-1] == 1000


def test_attention_caps_scores_before_it_hides_any():
    random = np.random.default_rng(6)
    q, k, v = (3 * random.standard_normal((1, 9, 2, 4)).astype(np.float32) for _ in range(3))

    capped = attend(q, k, v, 0, window=4, cap=0.5)[0, 8]

    for head in range(2):
        scores = 0.5 * np.tanh(k[0, 5:, head] @ q[0, 8, head] / 2 / 0.5)
        shares = np.exp(scores) / np.exp(scores).sum()
        assert np.allclose(capped[4 * head : 4 * head + 4], shares @ v[0, 5:, head], atol=1e-5)
    assert not np.allclose(capped, attend(q, k, v, 0, window=4)[0, 8], atol=0.01)


def test_gelu_is_the_one_by_tanh():
    x = np.linspace(-6, 6, 49, dtype=np.float32)
    found = x.copy()

    gelu(found)

    wide = x.astype(np.float64)
    expected = wide / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    assert np.allclose(found, expected, atol=1e-6)


def test_layers_with_a_window_may_have_a_rope_base_of_their_own_and_no_scaling(tmp_path):
    write_model(tmp_path, "linear")
    source = open_huggingface(tmp_path)

    def turns(windows, **more):
        changed = {**source.metadata, **{f"llama.rope.{key}": f32(value) for key, value in more.items()}}
        return make_rope(replace(source, metadata=changed), "neox", 8, 2, windows=windows).sin[1, 1]

    assert np.isclose(turns(None), np.sin(100.0**-0.25 / 2))
    assert np.isclose(turns(Windows(2)), np.sin(100.0**-0.25 / 2))
    assert np.isclose(turns(Windows(2, base=1e4)), np.sin(0.1))
    assert np.isclose(turns(Windows(2), freq_base_swa=1e4), np.sin(0.1 / 2))
    assert np.isclose(turns(Windows(2, base=1e4), freq_base_swa=16.0), np.sin(0.5))


@pytest.mark.parametrize("window", [None, 7, 100])
def test_blocks_of_queries_do_not_show(window):
    random = np.random.default_rng(6)
    q, k, v = (random.standard_normal((2, 300, heads, 4)).astype(np.float32) for heads in (4, 2, 2))

    whole = attend(q, k, v, 0, window)

    late = attend(q[:, 150:], k, v, 150, window)
    assert np.allclose(whole[:, 150:], late, atol=1e-6)


def test_groups_of_chunks_do_not_show(tmp_path, monkeypatch):
    write_model(tmp_path, "llama")
    source = open_huggingface(tmp_path)
    together = ours(source)

    monkeypatch.setattr(forward, "GROUP_BYTES", 1)

    assert np.allclose(ours(source), together, atol=TOLERANCE)


class Rows:
    """Counts the inputs of each matrix."""

    def __init__(self):
        self.seen = {}

    def measure(self, _names, x):
        return len(x)

    def add(self, names, measured):
        for name in names:
            self.seen[name] = self.seen.get(name, 0) + measured


def test_a_watcher_sees_every_input_of_every_matrix(tmp_path):
    write_model(tmp_path, "llama")
    source, rows = open_huggingface(tmp_path), Rows()

    watch(source, TOKENS, rows)

    matrices = {t.name for t in source.tensors if t.name.startswith("blk.") and len(t.info.shape) == 2}
    assert rows.seen == dict.fromkeys(matrices, TOKENS.size)


def test_a_report_may_stop_the_pass(tmp_path):
    write_model(tmp_path, "llama")

    def stop(progress):
        assert progress.done <= progress.total == TOKENS.size
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        ours(open_huggingface(tmp_path), report=stop)


def test_a_missing_layer_is_named(tmp_path):
    write_model(tmp_path, "llama")
    source = with_tensor(open_huggingface(tmp_path), "blk.1.ffn_up.weight", None)

    with pytest.raises(UnreadableFile, match=r"has no tensor blk\.1\.ffn_up\.weight"):
        ours(source)
