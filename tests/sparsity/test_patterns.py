import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_jax.sparsity import NM, Block, Group, Unstructured, parse
from sparse_jax.sparsity.select import keep_highest, quotas
from sparse_jax.sparsity.units import project_units
from sparse_jax.types import InputError

sparsities = st.floats(0.0, 0.999)


def sorted_keep(scores, n_dropped):
    """The rule in plain words: sort; of equal scores drop the last index first."""
    flat = scores.ravel()
    order = sorted(range(flat.size), key=lambda i: (flat[i], -i))
    kept = np.ones(flat.size, bool)
    kept[order[:n_dropped]] = False
    return kept.reshape(scores.shape)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 1e-40, 0.5, 3.0, np.inf]),
        min_size=12,
        max_size=12,
    ),
    n_dropped=st.integers(0, 12),
)
def test_selection_equals_a_stable_sort(values, n_dropped):
    scores = np.array(values, np.float32)
    # XLA flushes subnormals to zero on some backends: compare what it compares.
    scores[np.abs(scores) < 1e-37] = 0.0
    kept = jax.jit(keep_highest)(scores, n_dropped)
    np.testing.assert_array_equal(kept, sorted_keep(scores, n_dropped))


@settings(max_examples=40, deadline=None)
@given(sparsity=sparsities, seed=st.integers(0, 99), coarse=st.booleans())
def test_counts_are_exact_per_matrix(sparsity, seed, coarse):
    scores = np.random.default_rng(seed).random((2, 8, 12), np.float32)
    scores = np.round(scores * 4) if coarse else scores  # coarse: many ties
    mask = np.asarray(Unstructured(sparsity).project(scores))
    for matrix, kept in zip(scores, mask, strict=True):
        expected = sorted_keep(matrix, int(96 * sparsity))
        np.testing.assert_array_equal(kept, expected)


@settings(max_examples=30, deadline=None)
@given(sparsity=sparsities, seed=st.integers(0, 99))
def test_per_row_is_even_and_exact(sparsity, seed):
    scores = np.random.default_rng(seed).random((10, 13), np.float32)
    mask = np.asarray(Unstructured(sparsity, per_row=True).project(scores))
    pruned = (~mask).sum(1)
    assert pruned.sum() == int(130 * sparsity)
    assert pruned.max() - pruned.min() <= 1
    for row, kept in zip(scores, mask, strict=True):
        if kept.any() and not kept.all():
            assert row[kept].min() >= row[~kept].max()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (5, 16), (1, 3), (3, 3)])
def test_nm_keeps_the_best_n_of_every_group(n, m):
    scores = np.random.default_rng(0).random((3, 5, m * 4), np.float32)
    mask = np.asarray(NM(n, m).project(scores)).reshape(3, 5, 4, m)
    groups = scores.reshape(3, 5, 4, m)
    assert (mask.sum(-1) == n).all()
    lowest_kept = np.where(mask, groups, np.inf).min(-1)
    highest_dropped = np.where(mask, -np.inf, groups).max(-1)
    assert (lowest_kept > highest_dropped).all()


@settings(max_examples=30, deadline=None)
@given(sparsity=sparsities, seed=st.integers(0, 99))
def test_groups_and_blocks_are_whole(sparsity, seed):
    scores = np.random.default_rng(seed).random((2, 8, 12), np.float32)
    groups = np.asarray(Group(4, sparsity).project(scores)).reshape(2, 8, 3, 4)
    assert (groups == groups[..., :1]).all()
    assert ((~groups[..., 0]).sum((1, 2)) == int(24 * sparsity)).all()
    blocks = np.asarray(Block(4, 2, sparsity).project(scores)).reshape(2, 4, 2, 3, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    assert ((~blocks[:, :, 0, :, 0]).sum((1, 2)) == int(12 * sparsity)).all()
    summed = scores.reshape(2, 8, 3, 4).sum(-1)
    for total, kept in zip(summed, groups[..., 0], strict=True):
        if kept.any() and not kept.all():
            assert total[kept].min() >= total[~kept].max()


PATTERNS = [
    (Unstructured(0.5), Unstructured(0.7)),
    (Unstructured(0.5), Unstructured(0.7, per_row=True)),
    (NM(4, 8), NM(2, 8)),
    (NM(4, 8), Unstructured(0.7)),
    (Unstructured(0.5), NM(2, 4)),
    (Group(4, 0.5), Group(4, 0.8)),
    (Block(4, 2, 0.25), Block(4, 2, 0.5)),
]


@pytest.mark.parametrize(("first", "second"), PATTERNS, ids=str)
def test_a_prior_mask_is_nested_and_counts(first, second):
    rng = np.random.default_rng(0)
    prior = first.project(rng.random((2, 8, 16), np.float32))
    mask = second.project(rng.random((2, 8, 16), np.float32), prior)
    assert not (mask & ~prior).any()
    if isinstance(second, NM):
        assert (np.asarray(mask).reshape(2, 8, -1, second.m).sum(-1) <= second.n).all()
    else:
        rows, columns = 8 // second.unit[0], 16 // second.unit[1]
        size = second.unit[0] * second.unit[1]
        pruned = int(rows * columns * second.sparsity) * size
        assert ((~mask).sum((1, 2)) == pruned).all()


def test_a_change_of_sparsity_does_not_recompile():
    scores = jnp.ones((3, 7, 11))
    Unstructured(0.1).project(scores)
    compiled = project_units._cache_size()
    for sparsity in (0.2, 0.5, 0.9):
        Unstructured(sparsity).project(scores)
    assert project_units._cache_size() == compiled


def test_sparsity_is_data_of_the_pytree():
    leaves, structure = jax.tree.flatten(Group(16, 0.5))
    assert leaves == [0.5]
    assert structure == jax.tree.structure(Group(16, 0.7))
    assert structure != jax.tree.structure(Group(8, 0.5))
    assert jax.jit(lambda p: p.sparsity * 2)(Unstructured(0.25)) == 0.5
    with pytest.raises(InputError, match="concrete"):
        jax.jit(lambda p: p.project(jnp.ones((2, 2))))(Unstructured(0.5))


def test_projection_works_inside_jit():
    scores = jnp.arange(8.0).reshape(2, 4)
    for pattern in (Unstructured(0.5), NM(1, 4), Group(2, 0.5)):
        expected = pattern.project(scores)
        np.testing.assert_array_equal(jax.jit(pattern.project)(scores), expected)


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=9
    ),
    fraction=st.floats(0, 1),
)
def test_quotas_add_up_and_fit(parts, fraction):
    sizes = np.array([size for size, _ in parts])
    already = np.minimum(sizes, [count for _, count in parts])
    total = int(already.sum() + fraction * (sizes - already).sum())
    quota = quotas(total, sizes, already)
    assert quota.sum() == total
    assert (quota >= already).all()
    assert (quota <= sizes).all()


def test_parse_and_str_round_trip():
    for text in ("unstructured@0.7", "2:4", "group:16@0.5", "block:16x8@0.25"):
        assert str(parse(text)) == text
    assert parse("block:16x8", 0.5) == Block(bi=16, bo=8, sparsity=0.5)
    assert parse("unstructured@0.6", 0.5) == Unstructured(0.6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Unstructured(1.0), r"\[0, 1\), found 1.0"),
        (lambda: Unstructured(-0.1), r"\[0, 1\)"),
        (lambda: Unstructured(float("nan")), r"\[0, 1\)"),
        (lambda: Unstructured("half"), "must be a number"),
        (lambda: NM(5, 4), "at most m = 4, found 5"),
        (lambda: NM(0, 4), "n must be a positive integer"),
        (lambda: Group(0, 0.5), "size must be a positive integer"),
        (lambda: Block(4, 4, 1.5), r"\[0, 1\)"),
        (lambda: parse("2;4"), "'2;4' is not known"),
        (lambda: parse("unstructured"), "needs a sparsity"),
        (lambda: parse("unstructured@x"), "expected a number after '@'"),
        (lambda: parse("2:4@0.5"), "fixes its own sparsity"),
        (lambda: NM(2, 4).check((8, 6), "up"), "up: .* input .* of 4, found 6"),
        (lambda: Block(4, 3, 0.5).check((8, 4), "up"), "output .* of 3, found 8"),
        (lambda: Unstructured(0.5).check((8,), "norm"), "norm: expected a matrix"),
        (
            lambda: Unstructured(0.25).project(
                np.ones((2, 2), np.float32), np.zeros((2, 2), bool)
            ),
            "has pruned 4 already",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_both_zeros_tie_in_compiled_code():
    scores = np.array([0.0, -0.0, 0.0, -0.0], np.float32)
    kept = jax.jit(keep_highest)(scores, 2)
    assert kept.tolist() == [True, True, False, False]
