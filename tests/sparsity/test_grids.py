"""Grids as leaves beside their kernels: how they start, compute, train and end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.ops import effective_weight
from sparse_jax.quant import Grid, GridConfig, fit, from_codes, search, to_codes
from sparse_jax.sparsity import NM, Group, adapters, masks
from sparse_jax.sparsity.adapters import LoraConfig, LowRankConfig, QuantTrainConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

UP, DOWN = "layers/mlp/up", "layers/mlp/down"
SYMMETRIC = GridConfig(bits=4, group=4)
ASYMMETRIC = GridConfig(bits=3, group=8, symmetric=False)
ROWS = GridConfig(bits=8, group=0)
GRIDS = (SYMMETRIC, ASYMMETRIC, ROWS)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def make(pattern=NM(2, 4)):
    """Two pruned matrices, whose groups of 8 are ragged once, and other leaves."""
    params = {
        f"{UP}/kernel": random(2, 8, 12),
        f"{UP}/bias": jnp.ones((2, 12)),
        f"{DOWN}/kernel": random(2, 12, 8, seed=1),
        "layers/mlp_norm/scale": jnp.ones((2, 8)),
    }
    kept = dict.fromkeys(params)
    for node in (UP, DOWN):
        scores = params[f"{node}/kernel"] ** 2
        kept[f"{node}/kernel"] = masks.project_kernel(pattern, scores)
    return from_paths(params), from_paths(kept)


def kernels(tree):
    leaves = leaf_paths(tree)
    return {node: leaves[f"{node}/kernel"] for node in (UP, DOWN)}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("start", ["fit", "search"])
def test_they_start_as_the_grids_of_what_is_kept(start, grid):
    tree, kept = make()
    config = QuantTrainConfig(grid=grid, start=start)
    params, new_masks = adapters.add_grids(tree, kept, config)
    assert leaf_paths(new_masks).keys() == leaf_paths(params).keys()
    leaves = leaf_paths(params)
    for node, kernel in kernels(tree).items():
        mask = kernels(kept)[node]
        expected = (fit if start == "fit" else search)(kernel, grid, mask, axis=-2)
        scales = leaves[f"{node}/quant_scale"]
        assert scales.shape == (2, grid.groups(kernel.shape[1]), kernel.shape[2])
        np.testing.assert_allclose(scales, expected.scales, rtol=1e-6)
        assert (f"{node}/quant_zero" in leaves) == (not grid.symmetric)
        np.testing.assert_array_equal(leaves[f"{node}/kernel"], kernel)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("train", ["all", "scales", "weights"])
def test_the_end_computes_what_training_did(train, grid):
    """Bit for bit, on the stored grid, with every zero in its place."""
    tree, kept = make()
    config = QuantTrainConfig(grid=grid, train=train)
    params, kept = adapters.add_grids(tree, kept, config)
    rng = np.random.default_rng(3)
    params = from_paths(
        {
            path: leaf if leaf.dtype == jnp.int8 else leaf * rng.uniform(0.9, 1.1)
            for path, leaf in leaf_paths(params).items()
        }
    )
    options = {"grid": grid, "refit": config.refit}
    effective = kernels(adapters.effective_params(params, kept, **options))
    folded, folded_masks, grids = adapters.fold_grids(params, kept, **_fold(options))
    assert not adapters.split(folded)[1]
    assert leaf_paths(folded_masks).keys() == leaf_paths(folded).keys()
    assert masks.violations(folded, folded_masks) == 0
    for node, kernel in kernels(folded).items():
        np.testing.assert_allclose(kernel, effective[node], rtol=1e-6, atol=1e-12)
        for layer in (0, 1):
            own = grids[f"{node}/kernel", layer]
            codes = to_codes(kernel[layer], own, axis=-2)
            again = from_codes(codes, own, axis=-2)
            mask = kernels(folded_masks)[node][layer]
            np.testing.assert_array_equal(jnp.where(mask, again, 0), kernel[layer])
            stored = own.scales.astype(grid.scale_dtype).astype(jnp.float32)
            np.testing.assert_array_equal(own.scales, stored)
    assert len(grids) == 4


def _fold(options):
    return {"config": options["grid"], "refit": options["refit"]}


def test_codes_that_are_frozen_stay():
    """w = scale (code - zero): other scales move weights, and round nothing again."""
    tree, kept = make()
    config = QuantTrainConfig(grid=ASYMMETRIC, train="scales")
    params, kept = adapters.add_grids(tree, kept, config)
    before = kernels(params)
    assert {kernel.dtype for kernel in before.values()} == {jnp.dtype(jnp.int8)}
    leaves = leaf_paths(params)
    doubled = {
        p: 2 * leaf if p.endswith("scale") else leaf for p, leaf in leaves.items()
    }
    effective = [
        kernels(adapters.effective_params(from_paths(tree), kept, grid=ASYMMETRIC))
        for tree in (leaves, doubled)
    ]
    for node in (UP, DOWN):
        np.testing.assert_array_equal(2 * effective[0][node], effective[1][node])
    folded, _, grids = adapters.fold_grids(from_paths(doubled), kept, ASYMMETRIC)
    for (path, layer), grid in grids.items():
        codes = to_codes(leaf_paths(folded)[path][layer], grid, axis=-2)
        mask = leaf_paths(kept)[path][layer]
        same = codes == leaves[path][layer]
        assert bool(jnp.where(mask, same, True).all()), path


def test_gradients_of_all_leaves():
    """Against the formula, in every mode; the scales learn from what is kept."""
    kernel, mask = random(1, 4, 1), jnp.array([True, False, True, True])[None, :, None]
    tree = {"layers": {"up": {"kernel": kernel}}}
    kept = {"layers": {"up": {"kernel": mask}}}
    grid = GridConfig(bits=4, group=0)
    params, kept = adapters.add_grids(tree, kept, QuantTrainConfig(grid=grid))
    up = random(1, 4, 1, seed=9)

    def loss(params, mode):
        options = {"mode": mode, "grid": grid}
        effective = adapters.effective_params(params, kept, **options)
        return (up * effective["layers"]["up"]["kernel"]).sum()

    scale = params["layers"]["up"]["quant_scale"]
    codes = jnp.clip(jnp.round(kernel / scale), -7, 7)
    inside = jnp.abs(jnp.round(kernel / scale)) <= 7
    slope = jnp.where(inside, codes - kernel / scale, codes)
    for mode in ("fixed", "straight_through"):
        found = jax.grad(loss)(params, mode)["layers"]["up"]
        reach = jnp.where(mask | (mode == "straight_through"), inside, False)
        np.testing.assert_allclose(found["kernel"], up * reach, rtol=1e-6)
        expected = jnp.where(mask, up * slope, 0).sum()
        np.testing.assert_allclose(found["quant_scale"].sum(), expected, rtol=1e-4)


def test_a_group_without_weights_has_no_gradient_and_ends_with_scale_0():
    tree, kept = make(Group(4, 0.5))
    config = QuantTrainConfig(grid=SYMMETRIC)
    params, kept = adapters.add_grids(tree, kept, config)

    def loss(params):
        effective = kernels(adapters.effective_params(params, kept, grid=SYMMETRIC))
        return sum((random(*w.shape, seed=5) * w).sum() for w in effective.values())

    grads = leaf_paths(jax.grad(loss)(params))
    assert all(bool(jnp.isfinite(g).all()) for g in grads.values())
    _, _, grids = adapters.fold_grids(params, kept, SYMMETRIC)
    for (path, layer), grid in grids.items():
        mask = leaf_paths(kept)[path][layer]
        alive = mask.reshape(-1, 4, mask.shape[-1]).any(1)
        np.testing.assert_array_equal(grid.scales > 0, alive)
        slope = grads[path.replace("kernel", "quant_scale")][layer]
        assert not np.asarray(slope)[~np.asarray(alive)].any()


def test_lora_is_rounded_with_its_weight():
    tree, kept = make()
    params, kept = adapters.add_lora(tree, kept, LoraConfig(rank=2, targets=(".*",)))
    params = jax.tree.map(lambda w: w + 0.05, params)
    params, kept = adapters.add_grids(params, kept, QuantTrainConfig(grid=SYMMETRIC))
    found = kernels(adapters.effective_params(params, kept, grid=SYMMETRIC))
    for node, kernel in found.items():
        own = leaf_paths(params)
        term = own[f"{node}/lora_scale"][:, None, None] * (
            own[f"{node}/lora_a"] @ own[f"{node}/lora_b"]
        )
        grid = Grid(config=SYMMETRIC, scales=own[f"{node}/quant_scale"])
        moved = own[f"{node}/kernel"] + term
        codes = to_codes(moved, grid, axis=-2)
        expected = effective_weight(
            from_codes(codes, grid, axis=-2), leaf_paths(kept)[f"{node}/kernel"]
        )
        np.testing.assert_allclose(kernel, expected, atol=1e-6)
    merged, merged_masks = adapters.fold_lora(params, kept)
    again = kernels(adapters.effective_params(merged, merged_masks, grid=SYMMETRIC))
    for node, kernel in found.items():
        np.testing.assert_allclose(kernel, again[node], atol=1e-6)


def test_low_rank_terms_and_outliers_are_added_unrounded():
    tree, kept = make()
    params, kept = adapters.add_low_rank(tree, kept, LowRankConfig(group=4))
    params, kept = adapters.add_grids(params, kept, QuantTrainConfig(grid=SYMMETRIC))
    plain = kernels(
        adapters.effective_params(
            from_paths(
                {p: w for p, w in leaf_paths(params).items() if "slorb" not in p}
            ),
            kept,
            grid=SYMMETRIC,
        )
    )
    index = jnp.array([[0, 13], [5, 95]], jnp.int32)
    value = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    added = {f"{UP}/outlier_index": index, f"{UP}/outlier_value": value}
    whole = adapters.attach(params, added)
    found = kernels(
        adapters.effective_params(whole, adapters.masks_of(whole, kept), grid=SYMMETRIC)
    )
    s = leaf_paths(params)[f"{UP}/slorb_s"]
    expected = np.array(plain[UP] + jnp.repeat(s, 4, axis=-2))
    for layer, places in enumerate(np.asarray(index)):
        for place, amount in zip(places, np.asarray(value)[layer], strict=True):
            expected[layer, place % 8, place // 8] += amount  # [out, in], in = 8
    np.testing.assert_allclose(found[UP], expected, rtol=1e-6, atol=1e-6)


def parents(grid=SYMMETRIC, config=None):
    params, kept = adapters.add_grids(*make(), QuantTrainConfig(grid=grid))
    return adapters.fold_grids(params, kept, grid)


@pytest.mark.parametrize("train", ["all", "scales"])
def test_they_start_as_the_parent_s(train):
    params, kept, grids = parents()
    config = QuantTrainConfig(grid=SYMMETRIC, start="parent", train=train)
    whole, whole_masks = adapters.add_grids(params, kept, config, grids)
    found = kernels(adapters.effective_params(whole, whole_masks, grid=SYMMETRIC))
    for node, kernel in kernels(params).items():
        np.testing.assert_array_equal(found[node], kernel)
    again = adapters.fold_grids(whole, whole_masks, SYMMETRIC)
    for path, leaf in leaf_paths(again[0]).items():
        np.testing.assert_array_equal(leaf, leaf_paths(params)[path], err_msg=path)
    for key, grid in grids.items():
        np.testing.assert_array_equal(again[2][key].scales, grid.scales)


def test_matrices_that_the_parent_left_out_stay_floats():
    params, kept, grids = parents()
    grids = {key: grid for key, grid in grids.items() if key[0].startswith(UP)}
    config = QuantTrainConfig(grid=SYMMETRIC, start="parent")
    whole, _ = adapters.add_grids(params, kept, config, grids)
    assert set(adapters.split(whole)[1]) == {f"{UP}/quant_scale"}


def _without_a_layer(params, kept, grids):
    del grids[f"{UP}/kernel", 1]
    return adapters.add_grids(params, kept, START, grids)


START = QuantTrainConfig(grid=SYMMETRIC, start="parent")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, m, g: adapters.add_grids(p, m, START, None), "but it has none"),
        (_without_a_layer, "up/kernel is quantised, but not in layer 1"),
        (
            lambda p, m, g: adapters.add_grids(
                p, m, dataclasses.replace(START, grid=ROWS), g
            ),
            r"quantize.grid is GridConfig\(bits=8, .*'s grid of .* in layer 0 is Grid",
        ),
        (
            lambda p, m, g: adapters.add_grids(
                p, m, QuantTrainConfig(targets=(".*/q",))
            ),
            "quantize.targets: '.*/q' names none of .*layers/mlp/down",
        ),
        (lambda p, m, g: QuantTrainConfig(targets=()), "quantize.targets is empty"),
        (lambda p, m, g: QuantTrainConfig(targets=("(",)), "is no regular expression"),
        (
            lambda p, m, g: QuantTrainConfig(scale_rate=-1.0),
            "quantize.scale_rate must be >= 0, found -1.0",
        ),
        (
            lambda p, m, g: adapters.effective_params(
                *adapters.add_grids(p, m, QuantTrainConfig(grid=SYMMETRIC)), grid=ROWS
            ),
            "quant_scale: 3 groups of 12 inputs do not follow from the grid",
        ),
        (
            lambda p, m, g: adapters.effective_params(
                *adapters.add_grids(p, m, QuantTrainConfig(grid=SYMMETRIC))
            ),
            "do not follow from the grid None",
        ),
        (
            lambda p, m, g: adapters.attach(
                p, {f"{UP}/quant_zero": jnp.ones((2, 1, 8))}
            ),
            "up/quant_zero: there is no layers/mlp/up/quant_scale",
        ),
        (
            lambda p, m, g: adapters.attach(
                p, {f"{UP}/quant_scale": jnp.ones((2, 9, 12))}
            ),
            "up/quant_scale: 9 groups cannot share the 8 inputs",
        ),
        (
            lambda p, m, g: adapters.attach(
                p,
                {
                    f"{UP}/outlier_index": jnp.zeros((2, 3), jnp.int32),
                    f"{UP}/outlier_value": jnp.ones((2, 2)),
                },
            ),
            r"up/outlier_value: expected the shape \(2, 3\) .* found \(2, 2\)",
        ),
        (
            lambda p, m, g: adapters.add_grids(
                *adapters.add_grids(p, m, QuantTrainConfig()), QuantTrainConfig()
            ),
            "quant_scale is there already; add it once",
        ),
    ],
)
def test_bad_grids_are_one_sentence(change, message):
    with pytest.raises(InputError, match=message) as error:
        change(*parents())
    assert "\n" not in str(error.value)


def test_a_stored_projection_has_any_rank():
    tree, kept = make()
    factors = {
        f"{UP}/slorb_s": jnp.ones((2, 3, 12)),
        f"{UP}/slorb_x": jnp.ones((2, 8, 3)),
    }
    whole = adapters.attach(tree, factors)
    found = kernels(adapters.effective_params(whole, adapters.masks_of(whole, kept)))
    plain = kernels(masks.apply(tree, kept))
    np.testing.assert_allclose(found[UP], plain[UP] + 3, rtol=1e-6)
