"""Low-rank factors and learned scales beside pruned kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.sparsity import NM, adapters, masks
from sparse_jax.sparsity.adapters import LoraConfig, LowRankConfig
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError

UP, DOWN = "layers/mlp/up", "layers/mlp/down"


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def model():
    """Two pruned matrices, one of them wide, and leaves that have no masks."""
    params = {
        f"{UP}/kernel": random(2, 8, 12),
        f"{UP}/bias": jnp.ones((2, 12)),
        f"{DOWN}/kernel": random(2, 12, 8, seed=1),
        "layers/mlp_norm/scale": jnp.ones((2, 8)),
    }
    kept = dict.fromkeys(params)
    for node in (UP, DOWN):
        scores = jnp.abs(params[f"{node}/kernel"])
        kept[f"{node}/kernel"] = masks.project_kernel(NM(2, 4), scores)
    return from_paths(params), from_paths(kept)


def assert_same(found, expected):
    found, expected = leaf_paths(found), leaf_paths(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def explicit(w, mask, s, x, scale=None):
    """scale * (m * W) + X S by the formula, in float64."""
    w, mask, s, x = (np.asarray(a, np.float64) for a in (w, mask, s, x))
    masked = w * mask
    if scale is not None:
        halves = np.repeat(np.asarray(scale, np.float64), w.shape[-2] // 2, axis=-2)
        masked = halves * masked
    return masked + x @ s


def indicator(n_in, group):
    return np.arange(n_in)[:, None] // group == np.arange(n_in // group)


def test_the_factor_starts_as_the_mean_of_what_was_pruned():
    kernel = jnp.array([[1.0, 8.0], [2.0, 7.0], [3.0, 6.0], [4.0, 5.0]])
    kept = jnp.array([[0, 1], [1, 1], [0, 0], [0, 1]], bool)
    tree, mask = {"up": {"kernel": kernel}}, {"up": {"kernel": kept}}
    params, new_masks = adapters.add_low_rank(tree, mask, LowRankConfig(group=2))
    # Kept entries count as zeros: (1 + 0) / 2, (3 + 4) / 2 and 0, (6 + 0) / 2.
    assert params["up"]["slorb_s"].tolist() == [[0.5, 0.0], [3.5, 3.0]]
    assert new_masks["up"]["slorb_s"] is None and "slorb_x" not in params["up"]
    zeroed = masks.apply(tree, mask)
    again, _ = adapters.add_low_rank(zeroed, mask, LowRankConfig(group=2), dense=tree)
    np.testing.assert_array_equal(again["up"]["slorb_s"], params["up"]["slorb_s"])
    zero, _ = adapters.add_low_rank(zeroed, mask, LowRankConfig(group=2, init="zero"))
    assert not zero["up"]["slorb_s"].any()


def test_a_trained_projection_starts_as_the_indicator(model):
    fixed, _ = adapters.add_low_rank(*model, LowRankConfig(group=4))
    config = LowRankConfig(group=4, trainable_projection=True)
    trained, new_masks = adapters.add_low_rank(*model, config)
    node, other = trained["layers"]["mlp"]["down"], fixed["layers"]["mlp"]["down"]
    np.testing.assert_array_equal(node["slorb_x"], [indicator(12, 4)] * 2)
    np.testing.assert_array_equal(node["slorb_s"], other["slorb_s"])
    assert leaf_paths(new_masks).keys() == leaf_paths(trained).keys()
    assert_same(
        adapters.effective_params(trained, new_masks),
        adapters.effective_params(
            *adapters.add_low_rank(*model, LowRankConfig(group=4))
        ),
    )


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("mode", ["fixed", "straight_through", "dense"])
def test_weights_and_gradients_are_those_of_the_formula(model, mode, trainable):
    config = LowRankConfig(group=4, trainable_projection=trainable)
    params, kept = adapters.add_scales(*adapters.add_low_rank(*model, config))
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda a: a + rng.normal(size=a.shape).astype("f4"), params)
    cotangent = {
        node: random(*leaf["kernel"].shape, seed=5)
        for node, leaf in params["layers"]["mlp"].items()
    }

    def loss(params):
        weights = adapters.effective_params(params, kept, mode=mode)["layers"]["mlp"]
        return sum((weights[n]["kernel"] * c).sum() for n, c in cotangent.items())

    weights = adapters.effective_params(params, kept, mode=mode)
    assert adapters.split(weights)[1] == {}
    found = leaf_paths(jax.jit(jax.grad(loss))(params))
    for name, node in params["layers"]["mlp"].items():
        path = f"layers/mlp/{name}"
        w, g = node["kernel"], np.asarray(cotangent[name], np.float64)
        n_in = w.shape[-2]
        mask = np.asarray(leaf_paths(kept)[f"{path}/kernel"])
        seen = np.ones_like(mask) if mode == "dense" else mask
        x = node.get("slorb_x", np.stack([indicator(n_in, 4)] * 2))
        expected = explicit(w, seen, node["slorb_s"], x, node["scale"])
        got = weights["layers"]["mlp"][name]["kernel"]
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
        halves = np.repeat(np.asarray(node["scale"]), n_in // 2, axis=-2)
        reaches = mask if mode == "fixed" else 1.0
        x_t = np.swapaxes(np.asarray(x, np.float64), -1, -2)
        per_half = (g * np.asarray(w) * seen).reshape(2, 2, n_in // 2, -1).sum(-2)
        wanted = {"kernel": g * halves * reaches, "slorb_s": x_t @ g, "scale": per_half}
        if trainable:
            wanted["slorb_x"] = g @ np.swapaxes(np.asarray(node["slorb_s"]), -1, -2)
        for leaf, value in wanted.items():
            np.testing.assert_allclose(
                found[f"{path}/{leaf}"], value, rtol=1e-5, atol=1e-5, err_msg=leaf
            )


@pytest.mark.parametrize("mode", ["fixed", "straight_through", "dense"])
def test_without_adapters_it_is_apply(model, mode):
    found = adapters.effective_params(*model, mode=mode)
    assert_same(found, masks.apply(*model, mode=mode))


def test_the_fixed_projection_is_no_matrix_product(model):
    params, kept = adapters.add_low_rank(*model, LowRankConfig(group=4))
    text = str(jax.make_jaxpr(lambda p: adapters.effective_params(p, kept))(params))
    assert "dot_general" not in text


def test_compute_dtype_is_kept(model):
    params, kept = adapters.add_scales(
        *adapters.add_low_rank(*model, LowRankConfig(group=4))
    )
    node = params["layers"]["mlp"]["up"]
    node["kernel"] = node["kernel"].astype(jnp.bfloat16)
    found = adapters.effective_params(params, kept)["layers"]["mlp"]["up"]["kernel"]
    assert found.dtype == jnp.bfloat16


def test_folded_scales_compute_the_same_bits(model):
    params, kept = adapters.add_scales(
        *adapters.add_low_rank(*model, LowRankConfig(group=4))
    )
    plain = masks.apply(params, kept)
    for node in plain["layers"]["mlp"].values():
        node["scale"] = node["scale"] + random(*node["scale"].shape, seed=3)
    folded, folded_masks = adapters.fold_scales(plain, kept)
    assert_same(
        adapters.effective_params(folded, folded_masks),
        adapters.effective_params(plain, kept),
    )
    assert masks.violations(folded, folded_masks) == 0
    assert not any(
        "mlp/up/scale" in p for p in leaf_paths(folded) | leaf_paths(folded_masks)
    )
    assert "layers/mlp_norm/scale" in leaf_paths(folded)
    assert {"layers/mlp/up/slorb_s"} < leaf_paths(folded_masks).keys()


def test_split_and_attach_are_inverse(model):
    params, kept = adapters.add_scales(
        *adapters.add_low_rank(*model, LowRankConfig(group=4))
    )
    plain, adapter = adapters.split(params)
    assert sorted(adapter) == [
        f"{n}/{leaf}" for n in (DOWN, UP) for leaf in ("scale", "slorb_s")
    ]
    assert_same(plain, model[0])
    assert_same(adapters.attach(plain, adapter), params)
    assert adapters.masks_of(params, model[1]).keys() == kept.keys()
    sparse = masks.apply(plain, model[1])
    assert_same(
        adapters.merge(sparse, adapter), adapters.effective_params(params, kept)
    )


def test_the_bits_of_2_of_4_with_the_factors(model):
    square = {"up": {"kernel": random(3, 64, 64)}}
    kept = {"up": {"kernel": masks.project_kernel(NM(2, 4), square["up"]["kernel"])}}
    assert adapters.storage_bits(square, kept)["total"] == 8 + 1
    for trainable, share in ((False, 1 / 16), (True, 2 / 16)):
        config = LowRankConfig(trainable_projection=trainable)
        found = adapters.storage_bits(*adapters.add_low_rank(square, kept, config))
        assert found["low_rank"] == 16 * share
        assert found["total"] == 8 + 1 + 16 * share
    # Down: X alone takes in / (k out) = 12 / (4 * 8) of it; weights without masks, all.
    config = LowRankConfig(group=4, trainable_projection=True)
    params, kept = adapters.add_low_rank(*model, config)
    found = adapters.storage_bits(params, kept, weight_bits=4.0, factor_bits=8.0)
    low_rank = 8 * (1 / 4 + (12 * 3 + 8 * 2) / (2 * 96))
    assert found["low_rank"] == pytest.approx(low_rank)
    assert found["weights"] == 2


def test_plans_need_no_arrays(model):
    shapes = jax.eval_shape(
        lambda p, m: adapters.add_low_rank(p, m, LowRankConfig(group=2)), *model
    )
    assert leaf_paths(shapes[0])[f"{DOWN}/slorb_s"].shape == (2, 6, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p, m: adapters.add_low_rank(p, m, LowRankConfig(group=3)),
            r"low_rank.group = 3 does not divide the 8 inputs of layers/mlp/up/kernel",
        ),
        (
            lambda p, m: adapters.add_low_rank(
                masks.apply(p, m), m, LowRankConfig(group=4)
            ),
            "needs the weights before pruning",
        ),
        (
            lambda p, m: adapters.add_low_rank(
                p, jax.tree.map(lambda _: None, m), LowRankConfig()
            ),
            "no matrix is pruned",
        ),
        (
            lambda p, m: adapters.add_scales(*adapters.add_scales(p, m)),
            "layers/mlp/down/scale is there already",
        ),
        (
            lambda p, m: adapters.attach(p, {f"{UP}/slorb_s": jnp.ones((2, 3, 12))}),
            "layers/mlp/up/slorb_s: its rank 3 does not divide the 8 inputs",
        ),
        (
            lambda p, m: adapters.attach(p, {f"{UP}/slorb_s": jnp.ones((1, 2, 12))}),
            r"layers/mlp/up/slorb_s: expected .* \(2, 2, 12\) .* found \(1, 2, 12\)",
        ),
        (
            lambda p, m: adapters.attach(p, {f"{UP}/slorb_x": jnp.ones((2, 8, 2))}),
            "layers/mlp/up/slorb_x: there is no layers/mlp/up/slorb_s",
        ),
        (
            lambda p, m: adapters.attach(
                p, {"layers/mlp/gate/slorb_s": jnp.ones((2, 2, 12))}
            ),
            "there is no layers/mlp/gate/kernel",
        ),
        (lambda p, m: LowRankConfig(group=0), "low_rank.group must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence(model, change, message):
    with pytest.raises(InputError, match=message) as error:
        change(*model)
    assert "\n" not in str(error.value)


def test_an_odd_number_of_inputs_has_no_halves():
    params = {"up": {"kernel": jnp.ones((7, 2))}}
    with pytest.raises(InputError, match="up/kernel has 7 inputs, an odd number"):
        adapters.add_scales(params, {"up": {"kernel": jnp.ones((7, 2), bool)}})


LORA = LoraConfig(rank=3, alpha=6.0)


def test_lora_starts_at_the_model_as_it_is(model):
    params, kept = adapters.add_lora(*model, LORA)
    node = params["layers"]["mlp"]["down"]
    assert node["lora_a"].shape == (2, 12, 3) and node["lora_b"].shape == (2, 3, 8)
    assert node["lora_scale"].tolist() == [2.0, 2.0]
    assert not node["lora_b"].any()
    found = adapters.effective_params(params, kept)
    assert_same(found, adapters.effective_params(*model))
    assert_same(found, adapters.effective_params(*adapters.fold_lora(params, kept)))


def test_loras_first_factor_is_random_by_its_seed(model):
    def drawn(**fields):
        config = dataclasses.replace(LORA, rank=8, **fields)
        mlp = adapters.add_lora(*model, config)[0]["layers"]["mlp"]
        return [np.asarray(mlp[name]["lora_a"]) for name in ("up", "down")]

    first, again, other = drawn(), drawn(), drawn(seed=1)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    for a in first:
        layers = a[0], a[1]
        assert not np.array_equal(*layers)
        # Variance 1 / in: 128 or 192 draws.
        assert a.std() * a.shape[-2] ** 0.5 == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("mode", ["fixed", "straight_through", "dense"])
def test_lora_is_the_masked_product(model, mode):
    """Weights and gradients of m * (W + s A B), beside a scale and X S."""
    params, kept = adapters.add_low_rank(*model, LowRankConfig(group=4))
    params, kept = adapters.add_lora(*adapters.add_scales(params, kept), LORA)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda a: a + rng.normal(size=a.shape).astype("f4"), params)
    node = params["layers"]["mlp"]["up"]
    mask = kept["layers"]["mlp"]["up"]["kernel"]
    cotangent = random(*node["kernel"].shape, seed=5)
    w, a, b, s, scale = (
        np.asarray(node[name], np.float64)
        for name in ("kernel", "lora_a", "lora_b", "lora_scale", "scale")
    )
    s = s[:, None, None]
    seen = np.ones_like(mask) if mode == "dense" else mask
    expected = explicit(
        w + s * (a @ b), seen, node["slorb_s"], np.stack([indicator(8, 4)] * 2), scale
    )

    def effective(params):
        weights = adapters.effective_params(params, kept, mode=mode)
        return weights["layers"]["mlp"]["up"]["kernel"]

    np.testing.assert_allclose(effective(params), expected, rtol=1e-5, atol=1e-5)
    grads = jax.grad(lambda p: (effective(p) * cotangent).sum())(params)
    found = grads["layers"]["mlp"]["up"]
    reaches = mask if mode == "fixed" else 1.0
    halves = np.repeat(scale, 4, axis=-2)
    through = np.asarray(cotangent, np.float64) * halves * reaches
    wanted = {
        "kernel": through,
        "lora_a": s * through @ b.swapaxes(-1, -2),
        "lora_b": s * a.swapaxes(-1, -2) @ through,
        "lora_scale": np.zeros(2),
    }
    for name, gradient in wanted.items():
        np.testing.assert_allclose(
            found[name], gradient, rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_folded_lora_leaves_other_leaves_alone(model):
    params, kept = adapters.add_low_rank(*model, LowRankConfig(group=4))
    params, kept = adapters.add_lora(*adapters.add_scales(params, kept), LORA)
    params = jax.tree.map(lambda a: a + 0.1, params)
    folded, folded_masks = adapters.fold_lora(params, kept)
    assert_same(
        adapters.effective_params(folded, folded_masks),
        adapters.effective_params(params, kept),
    )
    assert masks.violations(folded, folded_masks) == 0
    names = {path.rpartition("/")[2] for path in adapters.split(folded)[1]}
    assert names == {"slorb_s", "scale"}
    assert leaf_paths(folded_masks).keys() == leaf_paths(folded).keys()


def test_lora_takes_its_targets(model):
    params, kept = adapters.add_lora(
        *model, dataclasses.replace(LORA, targets=(".*/up",))
    )
    assert sorted(adapters.split(params)[1]) == [
        f"{UP}/{name}" for name in ("lora_a", "lora_b", "lora_scale")
    ]
    assert leaf_paths(kept).keys() == leaf_paths(params).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, m: LoraConfig(rank=0), "lora.rank must be at least 1, found 0"),
        (lambda p, m: LoraConfig(alpha=0.0), "lora.alpha must be positive, found 0.0"),
        (lambda p, m: LoraConfig(targets=()), "lora.targets is empty; name matrices"),
        (lambda p, m: LoraConfig(targets=("(",)), "'\\(' is no regular expression"),
        (
            lambda p, m: adapters.add_lora(p, m, LoraConfig(targets=(".*/q",))),
            r"lora.targets: '.*/q' names none of .*layers/mlp/down', 'layers/mlp/up'",
        ),
        (
            lambda p, m: adapters.add_lora(p, m, LoraConfig(rank=9)),
            "lora.rank = 9 is more than layers/mlp/down has, a matrix of 12 by 8",
        ),
        (
            lambda p, m: adapters.add_lora(*adapters.add_lora(p, m, LORA), LORA),
            "layers/mlp/down/lora_a is there already; add it only once",
        ),
        (
            lambda p, m: adapters.attach(p, {f"{UP}/lora_a": jnp.ones((2, 8, 3))}),
            "up/lora_a: there is no layers/mlp/up/lora_b that it belongs to",
        ),
        (
            lambda p, m: adapters.attach(
                p,
                {
                    f"{UP}/lora_a": jnp.ones((2, 8, 4)),
                    f"{UP}/lora_b": jnp.ones((2, 3, 12)),
                    f"{UP}/lora_scale": jnp.ones(2),
                },
            ),
            r"up/lora_a: expected the shape \(2, 8, 3\) .* found \(2, 8, 4\)",
        ),
        (
            lambda p, m: adapters.attach(p, {f"{UP}/slorb_s": jnp.ones((2, 0, 12))}),
            "layers/mlp/up/slorb_s: its rank 0 does not divide the 8 inputs",
        ),
    ],
)
def test_bad_lora_is_one_sentence(model, change, message):
    with pytest.raises(InputError, match=message) as error:
        change(*model)
    assert "\n" not in str(error.value)
