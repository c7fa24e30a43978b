"""What the solvers promise, on correlated problems made here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.solvers import oracle, solve, solve_shared
from sparse_jax.solvers import sparsegpt as sparsegpt_module
from sparse_jax.sparsity import NM, Block, Group, Unstructured
from sparse_jax.types import InputError

PATTERNS = [
    Unstructured(0.5),
    Unstructured(0.7),
    NM(2, 4),
    NM(5, 16),
    Group(8, 0.5),
    Block(8, 4, 0.5),
]


def make_problem(n_out=48, n_in=96, seed=0, n_dead=0):
    """Weights, and a Hessian whose inputs are strongly correlated."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-np.arange(n_in) / 20)[:, None]
    mixing = rng.normal(size=(n_in, n_in)) * decay + 0.1 * np.eye(n_in)
    x = rng.normal(size=(300, n_in)) @ mixing * np.exp(0.4 * rng.normal(size=n_in))
    x[:, rng.choice(n_in, n_dead, replace=False)] = 0.0
    W = rng.normal(size=(n_out, n_in)).astype(np.float32)
    return W, (2 / 300 * x.T @ x).astype(np.float32)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_sparsegpt_equals_the_oracle(pattern):
    W, H = make_problem(n_dead=3)
    block = 40 if pattern.divisors[1] in (1, 4, 8) else 48  # ragged last block
    expected, mask = oracle.sparsegpt(W, H, pattern, block_size=block)
    solution = solve("sparsegpt", W, H, pattern, block_size=block)
    assert np.mean(mask != solution.mask) <= 5e-4
    error = oracle.relative_error(W, expected, H)
    assert solution.relative_error == pytest.approx(error, rel=1e-3)
    assert float(solution.damping) == pytest.approx(0.01)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_reference_mode_equals_the_oracle(pattern):
    W, H = make_problem(n_in=100, n_dead=2)
    options = {"reference": True, "block_size": 64, "damping": 0.05}
    expected, mask = oracle.sparsegpt(W, H, pattern, **options)
    solution = solve("sparsegpt", W, H, pattern, **options)
    assert np.mean(mask != solution.mask) <= 5e-4
    error = oracle.relative_error(W, expected, H)
    assert solution.relative_error == pytest.approx(error, rel=1e-3)
    if isinstance(pattern, Unstructured):  # one more than int(numel * s) per block
        assert (~solution.mask).sum() == int(48 * 64 * 0.5) + int(48 * 36 * 0.5) + 2


def test_the_solvers_rank_as_published():
    W, H = make_problem()
    for pattern in (Unstructured(0.5), Unstructured(0.7), NM(2, 4)):
        solutions = {
            name: solve(name, W, H, pattern)
            for name in ("magnitude", "wanda", "sparsegpt")
        }
        error = {name: s.relative_error for name, s in solutions.items()}
        moved = {name: np.square(s.weights - W).sum() for name, s in solutions.items()}
        assert error["sparsegpt"] < error["wanda"] < error["magnitude"]
        # The best mask for the weights is not the best one for the outputs.
        assert moved["magnitude"] < moved["wanda"] < moved["sparsegpt"]


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_counts_are_exact_and_zeros_are_zero(name, pattern):
    W, H = make_problem()
    solution = solve(name, W, H, pattern)
    kept = np.asarray(solution.mask)
    np.testing.assert_array_equal(np.asarray(solution.weights)[~kept], 0.0)
    if isinstance(pattern, NM):
        assert (kept.reshape(48, -1, pattern.m).sum(-1) == pattern.n).all()
    else:
        bo, bi = pattern.unit
        n_units = (48 // bo) * (96 // bi)
        assert (~kept).sum() == int(n_units * pattern.sparsity) * bo * bi
        units = kept.reshape(48 // bo, bo, 96 // bi, bi)
        assert (units == units[:, :1, :, :1]).all()
    if name != "sparsegpt":
        np.testing.assert_array_equal(solution.weights, np.where(kept, W, 0))


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Unstructured(0.5), Unstructured(0.7)),
        (Unstructured(0.5), NM(2, 8)),
        (Group(8, 0.5), Group(8, 0.75)),
        (Group(8, 0.25), Unstructured(0.7)),
    ],
    ids=str,
)
def test_prior_zeros_are_never_refilled(name, first, second):
    W, H = make_problem()
    before = solve("sparsegpt", W, H, first)
    after = solve(name, before.weights, H, second, prior_mask=before.mask)
    assert not (after.mask & ~before.mask).any()
    np.testing.assert_array_equal(
        np.asarray(after.weights)[~np.asarray(after.mask)], 0.0
    )
    if not isinstance(second, NM):
        pruned = int(after.mask.size / second.unit[1] * second.sparsity)
        assert (~after.mask).sum() == pruned * second.unit[1]


def test_errors_of_prior_zeros_are_compensated():
    W, H = make_problem()
    before = solve("sparsegpt", W, H, Unstructured(0.5))
    W, prior = np.asarray(before.weights), np.asarray(before.mask)
    after = solve("sparsegpt", W, H, Unstructured(0.7), prior_mask=prior)
    options = {"prior_mask": prior, "block_size": 32}
    expected, _ = oracle.sparsegpt(W, H, Unstructured(0.7), **options)
    error = oracle.relative_error(W, expected, H)
    assert after.relative_error == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_sparsity_below_the_prior_mask_is_an_error(name):
    W, H = make_problem()
    prior = solve("magnitude", W, H, Unstructured(0.7)).mask
    with pytest.raises(InputError, match="ask for at least that sparsity"):
        solve(name, W, H, Unstructured(0.5), prior_mask=prior)


def to_grid(values, index):
    return jnp.round(values * 2) / 2


def to_scaled_grid(scale, values, index):
    return jnp.round(values / scale) * scale


def test_rounding_errors_are_compensated():
    W, H = make_problem()
    nearest = solve("magnitude", W, H, Unstructured(0.0), quantizer=to_grid)
    np.testing.assert_array_equal(nearest.weights, np.round(W * 2) / 2)
    solution = solve("sparsegpt", W, H, Unstructured(0.0), quantizer=to_grid)
    assert solution.mask.all()
    np.testing.assert_array_equal(solution.weights * 2, np.round(solution.weights * 2))
    assert solution.relative_error < 0.5 * nearest.relative_error
    expected, _ = oracle.sparsegpt(
        W,
        H,
        Unstructured(0.0),
        quantizer=lambda values, index: np.round(values * 2) / 2,
    )
    error = oracle.relative_error(W, expected, H)
    assert solution.relative_error == pytest.approx(error, rel=0.05)


def test_joint_pruning_and_rounding_keeps_the_pattern():
    W, H = make_problem()
    solution = solve("sparsegpt", W, H, NM(2, 4), quantizer=to_grid)
    assert (np.asarray(solution.mask).reshape(48, -1, 4).sum(-1) == 2).all()
    np.testing.assert_array_equal(
        np.asarray(solution.weights)[~np.asarray(solution.mask)], 0.0
    )
    np.testing.assert_array_equal(solution.weights * 2, np.round(solution.weights * 2))


def test_leading_axes_are_mapped_over():
    problems = [make_problem(16, 40, seed) for seed in (0, 1)]
    W = np.stack([W for W, _ in problems])
    H = np.stack([H for _, H in problems])
    scale = np.array([[[0.5] * 16], [[0.25] * 16]], np.float32)[:, 0]
    priors = np.random.default_rng(0).random(W.shape) < 0.8
    cases = {"magnitude": Unstructured(0.6), "wanda": NM(1, 4)}
    for name, pattern in (cases | {"sparsegpt": Unstructured(0.6)}).items():
        quantizer = jax.tree_util.Partial(to_scaled_grid, scale)
        both = solve(name, W, H, pattern, prior_mask=priors, quantizer=quantizer)
        assert both.relative_error.shape == (2,)
        for i in range(2):
            quantizer = jax.tree_util.Partial(to_scaled_grid, scale[i])
            alone = solve(
                name, W[i], H[i], pattern, prior_mask=priors[i], quantizer=quantizer
            )
            np.testing.assert_array_equal(both.mask[i], alone.mask)
            np.testing.assert_allclose(both.weights[i], alone.weights, atol=1e-5)
    shared = solve("sparsegpt", W, H[0], Unstructured(0.5))
    alone = solve("sparsegpt", W[1], H[0], Unstructured(0.5))
    np.testing.assert_array_equal(shared.mask[1], alone.mask)


def test_matrices_that_share_an_input_are_ranked_on_their_own():
    W, H = make_problem(48, 96)
    parts = {"q": W[:32], "k": 10 * W[32:40], "v": W[40:]}
    patterns = {"q": Unstructured(0.5), "k": Unstructured(0.5), "v": NM(2, 4)}
    together = solve_shared("sparsegpt", parts, H, patterns)
    for key, part in parts.items():
        alone = solve("sparsegpt", part, H, patterns[key])
        np.testing.assert_array_equal(together[key].mask, alone.mask)
        np.testing.assert_array_equal(together[key].weights, alone.weights)
        assert (~together[key].mask).sum() == part.size // 2


def test_one_compilation_for_all_sparsities_and_priors():
    W, H = make_problem(24, 56)
    first = solve("sparsegpt", W, H, Unstructured(0.1))
    solve("sparsegpt", W, H, NM(1, 8))
    compiled = sparsegpt_module._prune._cache_size()
    for sparsity in (0.0, 0.9):
        solve("sparsegpt", W, H, Unstructured(sparsity))
        solve("sparsegpt", W, H, Unstructured(0.95), prior_mask=first.mask)
    solve("sparsegpt", W, H, NM(5, 8))
    solve("sparsegpt", W, H, Unstructured(0.5), damping=0.3)
    assert sparsegpt_module._prune._cache_size() == compiled


def test_zero_sparsity_changes_nothing_and_bfloat16_is_kept():
    W, H = make_problem()
    solution = solve("sparsegpt", W, H, Unstructured(0.0))
    assert solution.mask.all()
    np.testing.assert_allclose(solution.weights, W, atol=1e-6)
    assert solution.relative_error < 1e-9
    W16 = jnp.asarray(W, jnp.bfloat16)
    assert solve("sparsegpt", W16, H, NM(2, 4)).weights.dtype == jnp.bfloat16


def test_dead_inputs_constant_rows_and_zero_matrices():
    W, H = make_problem(n_dead=5)
    dead = np.diag(H) == 0
    solution = solve("sparsegpt", W, H, Unstructured(0.5))
    np.testing.assert_array_equal(np.asarray(solution.weights)[:, dead], 0.0)
    assert np.isfinite(solution.weights).all()
    zero = solve("sparsegpt", np.zeros_like(W), H, Unstructured(0.5))
    assert zero.relative_error == 0.0
    assert (~zero.mask).sum() == W.size // 2
    constant = solve("sparsegpt", np.ones_like(W), H, NM(2, 4))
    assert (np.asarray(constant.mask).reshape(48, -1, 4).sum(-1) == 2).all()
    nothing = solve("sparsegpt", W, np.zeros_like(H), Unstructured(0.5))
    np.testing.assert_array_equal(nothing.weights, 0.0)


def test_a_singular_hessian_raises_damping_and_says_so(caplog):
    W, H = make_problem()
    H = np.ones_like(H)  # every input the same: rank one
    solution = solve("sparsegpt", W, H, Unstructured(0.5), damping=0.0)
    assert float(solution.damping) > 0
    assert "damping raised" in caplog.text
    assert np.isfinite(solution.weights).all()
    # The sum of the inputs' weights is all that matters, and is all that is kept.
    np.testing.assert_allclose(solution.weights.sum(1), W.sum(1), atol=0.5)


def test_damping_is_raised_for_the_failing_matrix_only():
    W, H = make_problem()
    H = np.stack([H, np.ones_like(H)])
    solution = solve("sparsegpt", np.stack([W, W]), H, NM(2, 4), damping=1e-6)
    assert solution.damping[0] == pytest.approx(1e-6)
    assert solution.damping[1] >= 1e-6


def test_an_indefinite_hessian_is_refused():
    W, _ = make_problem(4, 4)
    H = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1e-9]])
    with pytest.raises(InputError, match=r"not symmetric|not positive definite"):
        solve("sparsegpt", W, H.astype(np.float32) - np.tri(4, k=-1), NM(2, 4))


W, H = make_problem(8, 16)
BAD = {
    "solver": (("nonesuch", W, H, NM(2, 4)), {}, r"'nonesuch' .* \['magnitude'"),
    "option": (("sparsegpt", W, H, NM(2, 4)), {"blocks": 1}, "no option 'blocks'"),
    "no options": (("magnitude", W, H, NM(2, 4)), {"damping": 1}, "options are none"),
    "damping": (("sparsegpt", W, H, NM(2, 4)), {"damping": -1.0}, "damping"),
    "block": (("sparsegpt", W, H, NM(2, 4)), {"block_size": 0}, "block_size"),
    "pattern": (("magnitude", W, H, NM(2, 5)), {}, "weights: .*of 5, found 16"),
    "H shape": (("wanda", W, H[:8, :8], NM(2, 4)), {}, r"Hessian \(16, 16\), found"),
    "H missing": (("sparsegpt", W, None, NM(2, 4)), {}, "needs a Hessian"),
    "H sign": (("wanda", W, -H, NM(2, 4)), {}, "negative diagonal"),
    "H symmetry": (("wanda", W, np.triu(H), NM(2, 4)), {}, "not symmetric"),
    "W nan": (("magnitude", W * np.nan, H, NM(2, 4)), {}, "weights contains NaN"),
    "H inf": (("wanda", W, H * np.inf, NM(2, 4)), {}, "Hessian of weights contains"),
    "prior": (
        ("wanda", W, H, NM(2, 4)),
        {"prior_mask": np.ones((8, 8), bool)},
        "prior mask must be bool",
    ),
    "per row": (("sparsegpt", W, H, Unstructured(0.5, per_row=True)), {}, "per_row"),
    "reference": (
        ("sparsegpt", W, H, Group(4, 0.5)),
        {"reference": True},
        "unstructured and N:M patterns only",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    arguments, options, message = BAD[case]
    with pytest.raises(InputError, match=message):
        solve(*arguments, **options)


def test_relative_error_needs_a_hessian():
    solution = solve("magnitude", W, None, NM(2, 4))
    with pytest.raises(InputError, match="needs a Hessian"):
        _ = solution.relative_error
