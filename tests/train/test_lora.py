"""Training low-rank adapters alone: what is frozen, what has moments, what stays 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_jax import models, sparsity, train
from sparse_jax.sparsity import adapters
from sparse_jax.sparsity.masks import make_masks, violations
from sparse_jax.train.trainable import join, partition
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError
from tests.train.helpers import (
    LOSS,
    MODEL,
    config,
    make_batch,
    make_batches,
    tree_equal,
)

LORA = adapters.LoraConfig(rank=4, alpha=8.0)
DENSE = sparsity.parse("unstructured", 0.0)
OPTIMIZER = train.OptimizerConfig(trainable=adapters.LORA_TRAINED, clip_norm=None)


def begin(params, masks, lora=LORA, optimizer=OPTIMIZER):
    whole, kept = adapters.add_lora(params, masks, lora)
    return train.init_state(whole, kept, optimizer, rng=jax.random.key(0))


def steps(state, n=3, **options):
    options = {"loss": LOSS, "optimizer": OPTIMIZER} | options
    for step in range(n):
        state, metrics = train.train_step(state, make_batch(step), 1e-2, **options)
    return state, metrics


def moments(state):
    adam = next(s for s in state.opt if isinstance(s, optax.ScaleByAdamState))
    return leaf_paths(adam.mu), leaf_paths(adam.nu)


def factors(tree):
    return {path for path in leaf_paths(tree) if path.endswith(("lora_a", "lora_b"))}


@pytest.fixture(scope="module")
def trained(params, masks):
    return steps(begin(params, masks))[0]


def test_only_the_factors_train(params, masks, trained):
    before, after = (leaf_paths(s.params) for s in (begin(params, masks), trained))
    moved = {p for p in before if not np.array_equal(before[p], after[p])}
    assert moved == factors(trained.params)
    assert len(moved) == 2 * 7


def test_moments_and_gradients_exist_for_the_factors_alone(params, masks, trained):
    for moment in moments(trained):
        assert moment.keys() == factors(trained.params)
    text = str(
        jax.make_jaxpr(
            lambda s: train.train_step(
                s, make_batch(0), 1e-2, loss=LOSS, optimizer=OPTIMIZER
            )
        )(trained)
    )
    # Of an embedding there would be a scattered gradient.
    assert "scatter-add" not in text and "scatter_add" not in text
    whole = train.init_state(
        params, masks, train.OptimizerConfig(), rng=jax.random.key(0)
    )

    def size(state):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt))

    entries = sum(leaf_paths(trained.params)[p].size for p in factors(trained.params))
    assert size(trained) == 2 * 4 * entries + 4
    assert size(trained) < size(whole) / 2


def test_one_step_is_adamw_of_the_factors_by_hand(params, masks):
    """From B = 0: B's gradient is s A^T (m * G), A's is zero, and only decays."""
    state = begin(params, masks)
    batch, node = make_batch(0), "layers/mlp/up"
    before = jax.tree.map(np.asarray, leaf_paths(state.params))
    plain, _ = adapters.split(state.params)
    kept = np.asarray(leaf_paths(masks)[f"{node}/kernel"])

    def mean_loss(params):
        found = LOSS(params, batch)
        return found.total / found.weight

    grad = leaf_paths(jax.jit(jax.grad(mean_loss))(plain))[f"{node}/kernel"]
    grad_b = 8.0 / 4 * np.swapaxes(before[f"{node}/lora_a"], -1, -2) @ (kept * grad)
    state, _ = steps(state, 1)
    after = leaf_paths(state.params)
    clear = np.abs(grad_b) > 1e-5  # else the sign is rounding's
    expected = -1e-2 * grad_b / (np.abs(grad_b) + 1e-8)
    found = np.asarray(after[f"{node}/lora_b"])
    np.testing.assert_allclose(found[clear], expected[clear], rtol=2e-3)
    a = before[f"{node}/lora_a"]
    np.testing.assert_allclose(after[f"{node}/lora_a"], a * (1 - 1e-2 * 0.1), rtol=1e-6)


def test_merging_keeps_every_zero_and_every_output(trained, masks):
    weights = adapters.effective_params(trained.params, trained.masks)
    merged, merged_masks = adapters.fold_lora(trained.params, trained.masks)
    assert tree_equal(merged_masks, masks)
    assert violations(merged, masks) == 0
    tokens = jnp.asarray(make_batch(7).tokens)
    logits = [models.forward(w, tokens, MODEL) for w in (weights, merged)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
    start = models.forward(adapters.split(trained.params)[0], tokens, MODEL)
    assert float(jnp.abs(logits[1] - start).max()) > 1e-2  # it did learn something


def test_ordinary_lora_destroys_sparsity(trained, masks):
    """The same factors without the mask, as usual tools merge them."""
    plain, factors = adapters.split(trained.params)
    leaves, filled = leaf_paths(plain), 0
    for path, mask in leaf_paths(masks).items():
        if mask is None:
            continue
        node = path.removesuffix("/kernel")
        product = factors[f"{node}/lora_a"] @ factors[f"{node}/lora_b"]
        merged = leaves[path] + factors[f"{node}/lora_scale"][:, None, None] * product
        filled += int(((merged != 0) & ~mask).sum())
        assert float((merged != 0).mean()) > 0.99
    pruned = sum(int((~m).sum()) for m in leaf_paths(masks).values() if m is not None)
    assert filled > 0.99 * pruned
    with pytest.raises(InputError, match=r"without its mask .* \(fold_lora\)"):
        adapters.merge(plain, factors)


def test_a_dense_model_takes_them_too(params):
    """Masks that keep everything, as a dense stage has: ordinary LoRA."""
    whole = make_masks(params, [(r"layers/.*/kernel", DENSE), (r".*", None)])
    state, _ = steps(begin(params, whole))
    merged = adapters.fold_lora(state.params, state.masks)[0]
    node = leaf_paths(state.params["layers"]["mlp"]["down"])
    expected = node["kernel"] + 8.0 / 4 * (node["lora_a"] @ node["lora_b"])
    found = merged["layers"]["mlp"]["down"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_it_learns_from_a_teacher(params, masks):
    teacher = models.init(jax.random.key(5), MODEL)
    loss = train.Distill(
        model=MODEL,
        compute=models.Compute(dtype="bfloat16", remat="block"),
        config=train.DistillConfig(kl_weight=0.0, feature_weight=1.0),
    )
    state, found = begin(params, masks), []
    frozen = jax.tree.map(np.asarray, adapters.split(state.params)[0])
    for _ in range(8):
        state, metrics = train.train_step(
            state, make_batch(0), 1e-2, teacher, loss=loss, optimizer=OPTIMIZER
        )
        found.append(float(metrics["features"]))
    assert found[-1] < 0.95 * found[0]
    assert tree_equal(adapters.split(state.params)[0], frozen)
    assert all(w.dtype == jnp.float32 for w in jax.tree.leaves(state.params))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(params, masks, tmp_path):
    def fit(directory, to):
        run = config(steps=to, optimizer=OPTIMIZER)
        return train.fit(
            begin(params, masks),
            make_batches,
            run,
            LOSS,
            directory=tmp_path / directory,
            name="lora",
            quiet=True,
        )[0]

    fit("stopped", 4)
    assert tree_equal(fit("stopped", 8), fit("whole", 8))


def test_its_checkpoint_is_not_one_of_full_training(params, masks, tmp_path):
    state = begin(params, masks)
    with train.Checkpoints(tmp_path) as saved:
        saved.save(1, state, {})
        saved.wait()
        everything = train.OptimizerConfig(clip_norm=None)
        whole = train.init_state(
            state.params, state.masks, everything, rng=jax.random.key(0)
        )
        with pytest.raises(InputError, match=r"opt/.*/mu/embed/embedding is not there"):
            saved.restore(whole)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ((".*/lora_a",), "'.*/lora_a' matches none of the 12 leaves, such as 'embed"),
        ((), "nothing would train; name leaves"),
        (("(",), r"'\(' is no regular expression: .*; correct it"),
    ],
)
def test_what_cannot_train_is_named(params, masks, patterns, message):
    with pytest.raises(InputError, match=message):
        train.init_state(
            params,
            masks,
            train.OptimizerConfig(trainable=patterns),
            rng=jax.random.key(0),
        )


def test_any_leaves_can_be_those_that_train(params, masks):
    """The seam is not about adapters: here only the norms learn."""
    optimizer = train.OptimizerConfig(trainable=(".*norm/scale",))
    before = train.init_state(params, masks, optimizer, rng=jax.random.key(0))
    norms = {p for p in leaf_paths(params) if p.endswith("norm/scale")}
    assert moments(before)[0].keys() == norms
    first = jax.tree.map(np.asarray, before.params)
    state, _ = steps(before, optimizer=optimizer)
    moved = jax.tree.map(np.array_equal, first, state.params)
    assert {p for p, same in leaf_paths(moved).items() if not same} == norms


def test_partitions_join_again(params):
    for patterns in (None, (".*norm/scale", ".*embedding"), (".*",)):
        trained, frozen = partition(params, patterns)
        assert tree_equal(join(trained, frozen), params)
