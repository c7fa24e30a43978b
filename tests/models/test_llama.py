import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_jax.models import (
    TAPS,
    Compute,
    block,
    cross_entropy,
    embed,
    forward,
    head,
    hidden,
    init,
)
from sparse_jax.models.layers import rms_norm
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError


def close(found, expected, tolerance=1e-5):
    expected = np.asarray(expected, np.float32)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def loss_of(params, tokens, config, compute=Compute()):
    x = hidden(params, tokens[:, :-1], config, compute)
    weights = jnp.ones(tokens[:, 1:].shape)
    total = cross_entropy(
        x, head(params, x.dtype), tokens[:, 1:], weights, compute.loss_chunk
    )
    return total / weights.sum()


value_and_grad = jax.jit(jax.value_and_grad(loss_of), static_argnums=(2, 3))
logits = jax.jit(forward, static_argnums=(2, 3))
jitted_block = jax.jit(block, static_argnums=2)


def test_no_position_sees_a_later_token(params, config, tokens):
    """d loss_t / d embedding_s is exactly 0 for s > t, and not for s <= t."""

    def run(x_BTD):
        for layer in range(config.n_layers):
            one = jax.tree.map(lambda leaf: leaf[layer], params["layers"])  # noqa: B023
            x_BTD, _ = block(one, x_BTD, config)
        return x_BTD.sum((0, 2))  # [T]

    grad_TBSD = jax.jit(jax.jacrev(run))(embed(params, tokens))
    seen_TS = np.asarray(jnp.abs(grad_TBSD).sum((1, 3)))
    later = np.triu(np.ones_like(seen_TS), 1).astype(bool)
    assert (seen_TS[later] == 0).all() and (seen_TS[~later] > 0).all()


def test_blocks_one_by_one_are_the_model(params, config, tokens):
    """What pruning walks over equals what training runs, and taps are the inputs."""
    x_BTD = embed(params, tokens)
    for layer in range(config.n_layers):
        one = jax.tree.map(lambda leaf: leaf[layer], params["layers"])  # noqa: B023
        before_BTD = x_BTD
        x_BTD, taps = jitted_block(one, x_BTD, config)
    close(
        rms_norm(x_BTD, params["final_norm"]["scale"], config.norm_eps),
        hidden(params, tokens, config),
    )
    assert set(taps) == set(TAPS)
    scale = one["attention_norm"]["scale"]
    close(taps["attention_in"], rms_norm(before_BTD, scale, config.norm_eps))
    # The block from its taps: x + o(attention_out_in), then + down(mlp_out_in).
    attention_out = taps["attention_out_in"] @ one["attention"]["o"]["kernel"]
    middle_BTD = before_BTD + attention_out
    scale = one["mlp_norm"]["scale"]
    close(taps["mlp_in"], rms_norm(middle_BTD, scale, config.norm_eps))
    close(x_BTD, middle_BTD + taps["mlp_out_in"] @ one["mlp"]["down"]["kernel"])


@pytest.mark.parametrize(
    "compute",
    [
        Compute(remat="dots"),
        Compute(scan_unroll=3),
        Compute(scan_unroll=2, remat="block", loss_chunk=7),
    ],
)
def test_execution_options_change_nothing(compute, params, config, tokens):
    loss, grads = value_and_grad(params, tokens, config, Compute())
    other, other_grads = value_and_grad(params, tokens, config, compute)
    close(other, loss, 1e-6)
    other_grads = leaf_paths(other_grads)
    for path, grad in leaf_paths(grads).items():
        assert bool((grad != 0).any()), path
        close(other_grads[path], grad)


def test_bfloat16_is_close_and_the_logits_are_float32(params, config, tokens):
    exact = logits(params, tokens, config)
    rounded = logits(params, tokens, config, Compute(dtype="bfloat16"))
    assert rounded.dtype == jnp.float32
    close(rounded, exact, 0.05)
    assert float(jnp.abs(rounded - exact).max()) > 0
    half = Compute(dtype="bfloat16")
    grads = jax.eval_shape(jax.grad(lambda p: loss_of(p, tokens, config, half)), params)
    assert all(grad.dtype == jnp.float32 for grad in jax.tree.leaves(grads))


def test_gqa_is_attention_with_repeated_key_heads(params, config, tokens):
    full = dataclasses.replace(config, n_kv_heads=None)
    L, D, H = config.n_layers, config.d_model, config.head_width

    def repeat(kernel):
        heads = kernel.reshape(L, D, config.kv_heads, H)
        return jnp.repeat(heads, 2, axis=2).reshape(L, D, D)

    attention = dict(params["layers"]["attention"])
    for name in ("k", "v"):
        attention[name] = {"kernel": repeat(attention[name]["kernel"])}
    repeated = params | {"layers": params["layers"] | {"attention": attention}}
    close(logits(repeated, tokens, full), logits(params, tokens, config))


def test_a_tied_head_is_the_embedding(make_params, config, tokens):
    tied = dataclasses.replace(config, tie_embeddings=True)
    params = make_params(tied)
    assert "lm_head" not in params
    kernel = params["embed"]["embedding"].T
    untied = params | {"lm_head": {"kernel": kernel}}
    close(logits(params, tokens, tied), logits(untied, tokens, config))
    _, grads = value_and_grad(params, tokens, tied, Compute())
    unused = sorted(set(range(config.vocab_size)) - set(np.ravel(tokens).tolist()))
    # Tokens that never occur still learn through the head.
    assert bool((grads["embed"]["embedding"][jnp.array(unused)] != 0).all())


def test_biases_are_added(make_params, config, tokens):
    biased = dataclasses.replace(config, attention_bias=True, mlp_bias=True)
    params = make_params(biased)
    assert sum(path.endswith("bias") for path in leaf_paths(params)) == 7
    _, grads = value_and_grad(params, tokens, biased, Compute())
    for path, grad in leaf_paths(grads).items():
        # Without RoPE a bias on k would shift all scores of a query alike.
        assert bool((grad != 0).any()), path


def test_documents_in_one_row_do_not_see_each_other(params, config, tokens):
    segment_ids = jnp.array([[0] * 5 + [1] * 7] * 2)
    positions = jnp.array([[*range(5), *range(7)]] * 2)
    together = logits(
        params, tokens, config, segment_ids=segment_ids, positions=positions
    )
    close(together[:, :5], logits(params, tokens[:, :5], config))
    close(together[:, 5:], logits(params, tokens[:, 5:], config))
    plain = logits(params, tokens, config)
    assert float(jnp.abs(plain[:, 5:] - together[:, 5:]).max()) > 1e-2


def ones(config, batch=2):
    return {
        "heads": jnp.ones((config.n_layers, batch, config.n_heads)),
        "neurons": jnp.ones((config.n_layers, batch, config.d_ff)),
    }


def test_gates_of_one_change_nothing(params, config, tokens):
    expected = logits(params, tokens, config)
    gates = ones(config)
    close(logits(params, tokens, config, gates=gates), expected, 1e-6)
    only = {"neurons": gates["neurons"]}
    close(logits(params, tokens, config, gates=only), expected, 1e-6)


def test_a_closed_gate_is_a_row_of_zeros(params, config, tokens):
    gates = ones(config)
    gates["heads"] = gates["heads"].at[1, 0, 2].set(0.0)
    gates["neurons"] = gates["neurons"].at[2, 0, 5].set(0.0)
    H = config.head_width
    leaves = leaf_paths(params["layers"])
    o = leaves["attention/o/kernel"].at[1, 2 * H : 3 * H].set(0.0)
    down = leaves["mlp/down/kernel"].at[2, 5].set(0.0)
    cut = params | {
        "layers": params["layers"]
        | {
            "attention": params["layers"]["attention"] | {"o": {"kernel": o}},
            "mlp": params["layers"]["mlp"] | {"down": {"kernel": down}},
        }
    }
    found = logits(params, tokens, config, gates=gates)
    close(found[0], logits(cut, tokens, config)[0])
    # The other sequence of the batch keeps its own gates.
    close(found[1], logits(params, tokens, config)[1], 1e-6)


def test_gates_are_differentiable(params, config, tokens):
    def loss(gates):
        return (logits(params, tokens, config, gates=gates)[0] ** 2).mean()

    grads = jax.jit(jax.grad(loss))(ones(config))
    for grad in grads.values():
        assert bool((grad[:, 0] != 0).any((0, 1))) and bool((grad[:, 1] == 0).all())
    step = 1e-2
    gates = ones(config)
    up, down = (
        loss(gates | {"heads": gates["heads"].at[0, 0, 1].add(sign * step)})
        for sign in (1, -1)
    )
    close(grads["heads"][0, 0, 1], (up - down) / (2 * step), 1e-3)


def test_a_sequence_that_is_too_long_is_refused(params, config):
    tokens = jnp.zeros((1, config.max_seq_len + 1), jnp.int32)
    for function in (forward, hidden):
        with pytest.raises(InputError, match=r"33 tokens .* allows \(32\)"):
            function(params, tokens, config)


def test_init_is_as_documented(config):
    config = dataclasses.replace(config, d_model=64, d_ff=128, vocab_size=500)
    jitted = jax.jit(init, static_argnums=1)
    params = jitted(jax.random.key(0), config)
    leaves = leaf_paths(params)
    residual = config.init_std / (2 * config.n_layers) ** 0.5
    for path, leaf in leaves.items():
        assert leaf.dtype == jnp.float32
        if path.endswith("scale"):
            assert bool((leaf == 1).all())
        else:
            small = path.endswith(("o/kernel", "down/kernel"))
            expected = residual if small else config.init_std
            assert float(leaf.std()) == pytest.approx(expected, rel=0.1), path
    kernel = leaves["layers/mlp/up/kernel"]
    assert not jnp.array_equal(kernel[0], kernel[1])  # every layer its own draw
    other = jitted(jax.random.key(1), config)
    assert not jnp.array_equal(other["embed"]["embedding"], leaves["embed/embedding"])


GOLDEN_LOSS = 3.718421
GOLDEN_RMS = {
    "embed/embedding": 6.774606e-3,
    "final_norm/scale": 7.608712e-2,
    "layers/attention/k/kernel": 1.406289e-3,
    "layers/attention/q/kernel": 8.612970e-4,
    "layers/attention/o/kernel": 7.673122e-3,
    "layers/attention_norm/scale": 2.459312e-2,
    "layers/mlp/down/kernel": 1.402545e-3,
    "layers/mlp/gate/kernel": 1.424877e-3,
    "lm_head/kernel": 1.093003e-2,
}


def test_golden_loss_and_gradients(params, config, tokens):
    """Numbers of one training step, to notice any change of the mathematics."""
    loss, grads = value_and_grad(params, tokens, config, Compute())
    assert float(loss) == pytest.approx(GOLDEN_LOSS, rel=1e-4)
    grads = leaf_paths(grads)
    for path, expected in GOLDEN_RMS.items():
        rms = float(jnp.sqrt(jnp.mean(grads[path] ** 2)))
        assert rms == pytest.approx(expected, rel=1e-3), path
