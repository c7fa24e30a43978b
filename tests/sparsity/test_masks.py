import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.sparsity import NM, Group, Unstructured, masks, sparsity_report
from sparse_jax.sparsity.schedule import cubic, one_shot
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError


def make_params():
    rng = np.random.default_rng(0)
    return {
        "embed": {"embedding": jnp.asarray(rng.normal(size=(10, 8)), jnp.float32)},
        "up": {
            "kernel": jnp.asarray(rng.normal(size=(2, 8, 12)), jnp.float32),
            "bias": jnp.ones((2, 12)),
        },
    }


RULES = [(".*/kernel", Unstructured(0.5)), (".*", None)]


def random_masks():
    tree = masks.make_masks(make_params(), RULES)
    rng = np.random.default_rng(1)
    tree["up"]["kernel"] = jnp.asarray(rng.random((2, 8, 12)) < 0.5)
    return tree


def test_make_masks_follows_the_rules():
    tree = masks.make_masks(make_params(), RULES)
    assert tree["embed"]["embedding"] is None
    assert tree["up"]["bias"] is None
    assert tree["up"]["kernel"].all()
    assert tree["up"]["kernel"].shape == (2, 8, 12)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([(".*/kernel", Unstructured(0.5))], "embed/embedding"),
        ([(".*/kernel", NM(3, 5)), (".*", None)], "up/kernel: .*input.* of 5, found 8"),
        ([(".*", "2:4")], "must get a Pattern or None"),
    ],
)
def test_make_masks_names_a_bad_rule(rules, message):
    with pytest.raises(InputError, match=message):
        masks.make_masks(make_params(), rules)


def test_kernels_are_transposed_for_patterns():
    scores = jnp.asarray(np.random.default_rng(0).random((2, 8, 12)), jnp.float32)
    kept = masks.project_kernel(Group(4, 0.5), scores)  # runs lie along `in`, axis 1
    runs = np.asarray(kept).reshape(2, 2, 4, 12)
    assert (runs == runs[:, :, :1]).all()
    nested = masks.project_kernel(Group(4, 0.75), scores, kept)
    assert not (nested & ~kept).any()


def test_apply_and_violations():
    params, tree = make_params(), random_masks()
    assert masks.violations(params, tree) == int((~tree["up"]["kernel"]).sum())
    applied = masks.apply(params, tree)
    assert masks.violations(applied, tree) == 0
    np.testing.assert_array_equal(
        applied["embed"]["embedding"], params["embed"]["embedding"]
    )
    gradient = jax.grad(lambda p: masks.apply(p, tree)["up"]["kernel"].sum())(params)
    np.testing.assert_array_equal(gradient["up"]["kernel"] != 0, tree["up"]["kernel"])


def test_packed_bits_round_trip():
    tree = random_masks()
    packed = masks.pack_masks(tree)
    assert packed["up"]["kernel"].shape == (2, 8, 2)
    assert packed["up"]["kernel"].dtype == jnp.uint8
    back = masks.unpack_masks(packed, make_params())
    assert leaf_paths(back).keys() == leaf_paths(tree).keys()
    np.testing.assert_array_equal(back["up"]["kernel"], tree["up"]["kernel"])
    reference = np.packbits(tree["up"]["kernel"], axis=-1, bitorder="little")
    np.testing.assert_array_equal(packed["up"]["kernel"], reference)


def test_damaged_bits_are_refused():
    with pytest.raises(InputError, match=r"up: .*shape \(2,\) to hold \(12,\)"):
        masks.unpack_bits(jnp.zeros(3, jnp.uint8), (12,), "up")
    with pytest.raises(InputError, match="past its end"):
        masks.unpack_bits(jnp.array([0, 255], jnp.uint8), (12,), "up")


def test_nesting():
    outer = random_masks()
    inner = masks.map_masks(lambda m: None if m is None else m.at[0].set(False), outer)
    masks.check_nested(inner, outer)
    assert masks.is_nested(inner, outer)
    assert not masks.is_nested(outer, inner)
    with pytest.raises(InputError, match="up/kernel keeps"):
        masks.check_nested(outer, inner)
    dense = masks.map_masks(lambda m: None, outer)
    assert masks.is_nested(outer, dense)
    assert not masks.is_nested(dense, outer)


def test_report_is_exact():
    params, tree = make_params(), random_masks()
    kept = np.asarray(tree["up"]["kernel"]).sum((1, 2))
    report = sparsity_report(params, tree)
    assert [row["layer"] for row in report["matrices"]] == [0, 1]
    assert [row["pruned"] for row in report["matrices"]] == [96 - k for k in kept]
    pruned = 192 - int(kept.sum())
    assert report["pruned_matrices"]["sparsity"] == pruned / 192
    assert report["model"] == {
        "pruned": pruned,
        "total": 80 + 192 + 24,
        "sparsity": pruned / 296,
    }
    assert masks.count(tree) == (int(kept.sum()), 192)


def test_schedules_stay_in_range_and_rise():
    steps = jnp.arange(0, 30)
    rising = jax.jit(lambda t: cubic(t, initial=0.1, final=0.7, begin=5, end=20))(steps)
    assert float(rising[0]) == pytest.approx(0.1)
    assert float(rising[-1]) == pytest.approx(0.7)
    assert (jnp.diff(rising) >= 0).all()
    jump = one_shot(steps, final=0.5, begin=10)
    np.testing.assert_array_equal(jump, np.where(np.arange(30) >= 10, 0.5, 0.0))
    with pytest.raises(InputError, match="final sparsity"):
        one_shot(0, final=1.0)
    with pytest.raises(InputError, match="end must come after"):
        cubic(0, final=0.5, begin=5, end=5)
