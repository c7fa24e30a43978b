"""Which storage type a matrix gets, and checkpoints packed whole."""

import dataclasses
import json
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax import io, models
from sparse_jax.evaluate import evaluate, evaluate_blocks
from sparse_jax.infer import PackConfig, pack_checkpoint, pack_table
from sparse_jax.infer.choose import (
    _bits,
    choose,
    code_holders,
    count_zeros,
    holders,
)
from sparse_jax.io.names import LINEAR_KERNELS
from sparse_jax.kernels import FORMATS, Packed, pack
from sparse_jax.models import LlamaConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

CONFIG = LlamaConfig(
    vocab_size=24, d_model=32, d_ff=40, n_layers=2, n_heads=2, n_kv_heads=1
)
DOWN = "layers/mlp/down/kernel"


def mask_of(pattern: str, shape=(48, 256)) -> np.ndarray:
    """A random mask [out, in]: "n:m", "group:SIZE", half of them, or a sparsity."""
    rng, (n_out, n_in) = np.random.default_rng(0), shape
    kind, _, size = pattern.partition(":")
    if kind == "group":
        return np.repeat(rng.random((n_out, n_in // int(size))) < 0.5, int(size), 1)
    if size:
        ranks = rng.random((n_out, n_in // int(size), int(size))).argsort(-1)
        return (ranks < int(kind)).reshape(shape)
    return rng.random(shape) >= float(kind)


@pytest.mark.parametrize(
    ("pattern", "floats", "int8", "int4"),
    [
        ("0.03", "dense", "dense", "dense"),
        ("0.2", "bitmask", "dense", "dense"),
        ("0.5", "bitmask", "ell", "dense"),
        ("8:16", "n16", "n16", "n16"),
        ("5:16", "n16", "n16", "n16"),
        ("4:8", "n16", "n16", "n16"),
        ("2:4", "n16", "n16", "n16"),
        ("group:16", "bitmask", "dense", "group"),
        ("group:8", "bitmask", "dense", "dense"),
    ],
)
def test_the_type_that_suits_a_pattern(pattern, floats, int8, int4):
    zeros = count_zeros(mask_of(pattern))
    found = [choose(zeros, d) for d in ("float32", "bfloat16", "int8", "int4")]
    kinds = [f"{floats}_float32", f"{floats}_bfloat16", f"{int8}_int8", f"{int4}_int4"]
    assert found == kinds


def test_n16_types_larger_than_dense_are_not_chosen():
    zeros = count_zeros(mask_of("12:16"))
    assert zeros.balanced
    found = {dtype: choose(zeros, dtype) for dtype in ("bfloat16", "int8", "int4")}
    assert found == {
        "bfloat16": "n16_bfloat16",
        "int8": "dense_int8",
        "int4": "dense_int4",
    }


def test_where_int8_is_faster_than_int4():
    assert choose(count_zeros(mask_of("0.85", (64, 256))), "int4") == "ell_int8"
    assert choose(count_zeros(mask_of("0.6", (64, 256))), "int4") == "dense_int4"
    # Whole groups make ell_int8 large.
    groups = count_zeros(mask_of("group:16", (64, 256)))
    assert choose(groups, "int4") == "group_int4"


@pytest.mark.parametrize("pattern", ["0.2", "0.5", "0.8", "8:16", "group:8"])
def test_what_ell_takes_is_foreseen(pattern):
    kept = mask_of(pattern, (128, 4096))
    found = pack("ell_int8", np.ones(kept.shape, np.float32), kept).bits_per_weight
    assert _bits("ell_int8", count_zeros(kept)) == pytest.approx(found, rel=0.04)


def test_two_bits_are_dense_unless_few_groups_are_kept():
    assert choose(count_zeros(mask_of("0.5")), "int2") == "dense_int2"
    assert choose(count_zeros(mask_of("5:16")), "int2") == "dense_int2"
    few = np.repeat(np.random.default_rng(0).random((64, 16)) < 0.25, 16, axis=1)
    assert choose(count_zeros(few), "int2") == "group_int4"


def test_integer_scales_are_for_codes_alone():
    groups = count_zeros(np.repeat(np.arange(64).reshape(4, 16) % 2 == 0, 16, axis=1))
    assert "group_int4_u8" in code_holders(groups, ("int8", "int2", "int4"))
    assert "group_int4_u8" not in holders(groups, "int4")
    assert code_holders(groups, ("int2",)) == ["dense_int2"]


def test_zeros_of_rows_that_end_inside_a_group():
    zeros = count_zeros(np.ones((3, 36), bool))
    assert zeros.kept == 3 * 36 and zeros.groups == 9 and zeros.sparsity == 0


def test_few_zeros_by_chance_change_nothing():
    kept = mask_of("5:16").copy()
    kept[tuple(np.argwhere(kept)[::50].T)] = False
    assert choose(count_zeros(kept), "int8") == "n16_int8"
    one_more = mask_of("5:16") | (np.arange(256) == 3)
    assert count_zeros(one_more).most == 6
    nothing = count_zeros(np.zeros((4, 4096), bool))
    assert choose(nothing, "bfloat16") == "bitmask_bfloat16"
    assert choose(nothing, "int4") == "group_int4"
    # 172 is not a multiple of 16.
    kept = mask_of("2:4", (48, 172))
    assert count_zeros(kept).most == 16
    assert choose(count_zeros(kept), "int4") == "dense_int4"
    assert choose(count_zeros(kept), "float32") == "bitmask_float32"


def sparse_model(config=CONFIG, **patterns) -> tuple[dict, dict]:
    """Random params, pruned by patterns for the linears: {"q": pattern}."""
    rng = np.random.default_rng(0)
    leaves = leaf_paths(models.abstract_params(config))
    masks = dict.fromkeys(leaves)
    for path, leaf in leaves.items():
        w = rng.standard_normal(leaf.shape, np.float32)
        name = path.split("/")[-2]
        pattern = patterns.get(name, patterns.get("others"))
        if re.fullmatch(LINEAR_KERNELS, path) and pattern is not None:
            kept = mask_of(pattern, leaf.shape[:0:-1])
            masks[path] = jnp.asarray(np.stack([kept.T] * leaf.shape[0]))
            w = np.where(masks[path], w, np.float32(0))
        leaves[path] = jnp.asarray(w)
    return from_paths(leaves), from_paths(masks)


PATTERNS = {"q": "8:16", "o": "2:4", "up": "group:16", "v": "0.5"}


def save(path, config=CONFIG, dtype="float32", **patterns):
    params, masks = sparse_model(config, **patterns)
    io.save(path, params, config, masks=masks, dtype=dtype)
    return io.open_blocks(path)


def formats_of(report) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in report["tensors"]:
        found.setdefault(row["path"].split("/")[-2], set()).add(row["format"])
    return found


def unpacked(blocks: io.PackedBlocks, index: int) -> dict:
    """The leaves of a block, kernels as [in, out]."""
    leaves = leaf_paths(blocks.layer(index))
    for path, leaf in leaves.items():
        leaves[path] = leaf.unpack().T if isinstance(leaf, Packed) else leaf
    return from_paths(leaves)


def assert_same_weights(reader, packed: io.PackedModel):
    """Every weight of a packed model is that of its checkpoint, bit for bit."""
    blocks = io.PackedBlocks(packed)
    for index in range(reader.config.n_layers):
        expected = leaf_paths(reader.layer(index))
        for path, found in leaf_paths(unpacked(blocks, index)).items():
            assert np.array_equal(found, expected[path]), path
    ids = np.arange(reader.config.vocab_size)
    assert np.array_equal(blocks.embed(ids), reader.embed(ids))
    tied = reader.config.tie_embeddings
    head = "embed/embedding" if tied else "lm_head/kernel"
    for start, stop in ((0, 24), (3, 19), (16, 17)):
        assert np.array_equal(
            blocks.rows(head, start, stop), reader.rows(head, start, stop)
        )
    assert np.array_equal(
        blocks.leaf("final_norm/scale"), reader.leaf("final_norm/scale")
    )


@pytest.mark.parametrize(
    ("dtype", "tied"),
    [("float32", False), ("float32", True), ("bfloat16", True), ("float16", False)],
)
def test_auto_loses_nothing(dtype, tied, tmp_path):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, attention_bias=True)
    reader = save(tmp_path / "a", config, dtype, **PATTERNS)
    report = pack_checkpoint(reader, tmp_path / "a.packed")
    stored = "bfloat16" if dtype == "bfloat16" else "float32"
    assert formats_of(report) == {
        "q": {f"n16_{stored}", dtype},  # the bias
        "k": {f"dense_{stored}", dtype},
        "v": {f"bitmask_{stored}", dtype},
        "o": {f"n16_{stored}", dtype},
        "gate": {f"dense_{stored}"},
        "up": {f"bitmask_{stored}"},
        "down": {f"dense_{stored}"},
        "embed": {f"dense_{stored}" if tied else dtype},
        **({} if tied else {"lm_head": {f"dense_{stored}"}}),
        **{name: {dtype} for name in ("attention_norm", "mlp_norm", "final_norm")},
    }
    assert_same_weights(reader, io.read_packed(tmp_path / "a.packed"))


def test_the_account_adds_up(tmp_path):
    reader = save(tmp_path / "a", **PATTERNS)
    report = pack_checkpoint(reader, tmp_path / "a.packed")
    assert report == json.loads(json.dumps(report, allow_nan=False))
    size = (tmp_path / "a.packed").stat().st_size
    totals = report["totals"]
    parts = [total["bytes_after"] for part, total in totals.items() if part != "file"]
    assert sum(parts) == totals["file"]["bytes_after"] == size
    before = sum(f.stat().st_size for f in (tmp_path / "a").glob("model.safetensors"))
    assert 0 < before - totals["file"]["bytes_before"] < 4096  # its header
    packed = leaf_paths(io.read_packed(tmp_path / "a.packed").params)
    rows = {row["name"]: row for row in report["tensors"]}
    leaf = packed["layers/attention/q/kernel"][1]
    row = rows["model.layers.1.self_attn.q_proj.weight"]
    assert isinstance(leaf, Packed) and row["bytes_after"] == leaf.nbytes
    assert row["bits_per_weight"] == leaf.bits_per_weight
    assert row["sparsity"] == 0.5 and row["layer"] == 1 and row["note"] == ""
    table = pack_table(report)
    assert re.search(r"layers/attention/q/kernel +n16_float32 +0-1 +50\.00 %", table)
    assert re.search(rf"\nfile .* {size / 1e3:,.1f}$", table)


@pytest.mark.parametrize("asked", FORMATS)
def test_a_named_format_holds_what_it_can(asked, tmp_path):
    if asked.startswith("group"):
        pattern = "group:16"
    else:
        pattern = "8:16" if asked.startswith("n16") else "0.5"
    patterns = dict.fromkeys(["q", "k", "v", "o", "gate", "up"], pattern)
    reader = save(tmp_path / "a", **patterns, down="0.5")
    report = pack_checkpoint(reader, tmp_path / "a.packed", PackConfig(format=asked))
    found = formats_of(report)
    dtype = FORMATS[asked].dtype
    assert report["dtype"] == dtype and found["q"] == found["up"] == {asked}
    if FORMATS[asked].input_multiple == 1:
        assert found["down"] == {asked}
        notes = {""}
    else:  # 40 inputs
        suited = {"int8": "ell_int8", "int4": "dense_int4"}
        assert found["down"] == {suited.get(dtype, f"bitmask_{dtype}")}
        notes = {f"40 inputs, {asked} needs a multiple of 16"}
        assert notes.pop() in pack_table(report)
        notes = {f"40 inputs, {asked} needs a multiple of 16"}
    assert {r["note"] for r in report["tensors"] if r["path"] == DOWN} == notes
    # Rounded or not, what was pruned stays pruned.
    packed = io.PackedBlocks(io.read_packed(tmp_path / "a.packed"))
    for index in range(2):
        masks, layer = reader.layer_masks(index), leaf_paths(unpacked(packed, index))
        for path, mask in masks.items():
            kernel = layer[path.removeprefix("layers/")]
            assert not np.any((kernel != 0) & ~mask), path


def test_patterns_that_a_named_format_cannot_hold(tmp_path):
    reader = save(tmp_path / "a", others="8:16", down=None, v="0.5")
    where = (
        r"tensor 'model\.layers\.0\.self_attn\.v_proj\.weight': n16_int8: the matrix "
        r"cannot be held: row \d+, inputs (0 to 15|16 to 31) keep \d+ of 16, expected"
    )
    with pytest.raises(InputError, match=where):
        pack_checkpoint(reader, tmp_path / "x", PackConfig(format="n16_int8"))
    where = r"q_proj\.weight': group_int4: .* row 0, inputs 0 to 15 keep 8 of 16, exp"
    with pytest.raises(InputError, match=where):
        pack_checkpoint(reader, tmp_path / "x", PackConfig(format="group_int4"))
    dense = save(tmp_path / "b")
    with pytest.raises(InputError, match="keep 16 of 16, expected the same number bel"):
        pack_checkpoint(dense, tmp_path / "x", PackConfig(format="n16_float32"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"format": "n16"}, r"unknown format 'n16'; expected one of dense_float32, "),
        ({"dtype": "int3"}, r"dtype must be one of \('float32', .*found 'int3'"),
        (
            {"format": "n16_int8", "dtype": "int4"},
            "format n16_int8 stores int8, but dtype is int4; name only one of them",
        ),
        ({"head": "n16_int8"}, r"head must be auto or one of \['dense_float32', .*"),
    ],
)
def test_settings_that_make_no_sense(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        PackConfig(**settings)


def test_bfloat16_rounds_everything_but_norms(tmp_path):
    reader = save(tmp_path / "a", **PATTERNS)
    config = PackConfig(dtype="bfloat16")
    report = pack_checkpoint(reader, tmp_path / "a.packed", config)
    assert formats_of(report)["embed"] == {"bfloat16"}
    assert formats_of(report)["lm_head"] == {"dense_bfloat16"}
    assert formats_of(report)["mlp_norm"] == {"float32"}
    blocks = io.PackedBlocks(io.read_packed(tmp_path / "a.packed"))
    up = unpacked(blocks, 1)["mlp"]["up"]["kernel"]
    expected = reader.layer(1)["mlp"]["up"]["kernel"]
    assert np.array_equal(up, expected.astype(jnp.bfloat16).astype(jnp.float32))


def test_a_rounded_head_leaves_the_embedding_alone(tmp_path):
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    reader = save(tmp_path / "a", config)
    settings = PackConfig(head="dense_int8")
    report = pack_checkpoint(reader, tmp_path / "a.packed", settings)
    rows = {row["part"]: row for row in report["tensors"]}
    assert rows["embedding"]["format"] == "float32"
    assert rows["head"]["format"] == "dense_int8" and rows["head"]["bytes_before"] == 0
    packed = io.read_packed(tmp_path / "a.packed")
    ids = np.arange(24)
    assert np.array_equal(io.PackedBlocks(packed).embed(ids), reader.embed(ids))
    assert packed.params["lm_head"]["kernel"].format == "dense_int8"


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    params, _ = sparse_model()
    params["layers"]["mlp"]["up"]["kernel"] = (
        params["layers"]["mlp"]["up"]["kernel"].at[1, 3, 5].set(jnp.nan)
    )
    io.save(tmp_path / "a", params, CONFIG)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj.*row 5, input 3 is"):
        pack_checkpoint(io.open_blocks(tmp_path / "a"), tmp_path / "x")


def test_masks_of_other_weights_are_refused(tmp_path):
    params, masks = sparse_model(others="8:16", down=None)
    io.save(tmp_path / "a", params, CONFIG, masks=masks)
    io.save(tmp_path / "b", jax.tree.map(lambda leaf: leaf + 1, params), CONFIG)
    file = tmp_path / "a/masks.safetensors"
    file.rename(tmp_path / "b/masks.safetensors")
    with pytest.raises(
        InputError, match=r"b/masks\.safetensors: \d+ weights of 'model\.lay"
    ):
        pack_checkpoint(io.open_blocks(tmp_path / "b"), tmp_path / "x")


def test_resolve_unpacks(tmp_path):
    params, masks = sparse_model(**PATTERNS)
    io.save(tmp_path / "a", params, CONFIG, masks=masks)
    pack_checkpoint(io.open_blocks(tmp_path / "a"), tmp_path / "a.packed")
    model = io.resolve(tmp_path / "a.packed")
    assert model.config == CONFIG and "from the zeros of its sparse" in model.source
    for path, found in leaf_paths(model.params).items():
        assert np.array_equal(found, leaf_paths(params)[path]), path
    for path, found in leaf_paths(model.masks).items():
        expected = leaf_paths(masks)[path]
        if found is not None:
            assert np.array_equal(found, expected), path
        else:
            assert expected is None, path
    with pytest.raises(
        InputError, match=r"a\.packed: is a packed file, which is gener"
    ):
        io.open_blocks(tmp_path / "a.packed")


def test_the_loss_is_that_of_the_kernels(tmp_path):
    reader = save(tmp_path / "a", **PATTERNS)
    ids = np.random.default_rng(0).integers(0, 24, 64, np.int32)
    losses = {}
    for dtype in ("float32", "int8"):
        path = tmp_path / f"{dtype}.packed"
        pack_checkpoint(reader, path, PackConfig(dtype=dtype))
        text = ids, np.ones_like(ids)
        blocks = io.PackedBlocks(io.read_packed(path))
        losses[dtype] = [
            evaluate_blocks(reader, *text, window=16).loss,
            evaluate_blocks(blocks, *text, window=16).loss,
            evaluate(io.resolve(path).params, CONFIG, *text, window=16).loss,
        ]
    dense, packed, weights = losses["float32"]
    assert packed == pytest.approx(dense, rel=1e-6) and weights == pytest.approx(dense)
    # Rounding weights changes the loss, and rounding activations changes it again.
    dense, packed, weights = losses["int8"]
    assert packed == pytest.approx(dense, rel=2e-2)
    assert len({dense, packed, weights}) == 3


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    config = dataclasses.replace(CONFIG, d_model=128, d_ff=1024, n_layers=6)
    reader = save(tmp_path / "a", config)
    kernel = 4 * 128 * 1024  # bytes
    tracemalloc.start()
    pack_checkpoint(reader, tmp_path / "a.packed")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The weights, their mask and the packed copy; the model is 18 of these kernels.
    assert peak < 6 * kernel
