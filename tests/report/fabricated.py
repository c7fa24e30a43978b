"""A report as a default run makes it, from made-up numbers."""

import math

import numpy as np

DENSE, STAGE = 1_000_000, 600_000
SHIFT = {"code": 0.0, "prose": 0.25}


def decay(tokens):
    return 2.4 + 4.5 * math.exp(-tokens / 250_000) + 0.4 * math.exp(-tokens / 2e6)


def numbers(loss):
    """Evaluations on both domains around one loss."""
    rows = {}
    for domain, shift in SHIFT.items():
        value = loss + shift
        rows[domain] = {
            "loss": value,
            "perplexity": math.exp(value),
            "bits_per_byte": value / math.log(2) / 2.9,
            "tokens": 51_000,
            "bytes": 147_900,
        }
    return rows


def model(name, sparsity, tokens, loss, seconds=None):
    flops = 6 * 590_000.0 * tokens
    return {
        "name": name,
        "sparsity_pruned": sparsity,
        "sparsity_total": 0.75 * sparsity,
        "tokens": tokens,
        "domains": numbers(loss),
        "seconds": seconds,
        "tokens_per_second": None if seconds is None else 41_234.5,
        "training_flops_dense_equivalent": flops,
        "training_flops_nonzero": flops * (1 - 0.5 * sparsity),
    }


def one_shot(method, sparsity):
    factor = {"magnitude": 1.6, "wanda": 1.1, "sparsegpt": 0.8}[method]
    loss = decay(DENSE) + factor * 4 * sparsity**4
    return {"method": method, "sparsity": sparsity, "domains": numbers(loss)}


def layers(sparsity):
    names = ("attention/q", "attention/k", "attention/v", "attention/o")
    names += ("mlp/gate", "mlp/up", "mlp/down")
    return [
        {"path": f"layers/{name}/kernel", "layer": layer, "sparsity": sparsity}
        for name in names
        for layer in range(2)
    ]


def report():
    middle, end = DENSE + STAGE, DENSE + 2 * STAGE
    return {
        "name": "sparse70",
        "config_sha256": "ab" * 32,
        "command": "python launch/train.py --config=configs/sparse70.py",
        "python": "3.11.9",
        "corpus": {
            "sha256": "cd" * 32,
            "code": {"train_documents": 480, "train_tokens": 2_345_678, "weight": 0.7},
            "prose": {"train_documents": 3_480, "train_tokens": 845_678, "weight": 0.3},
        },
        "model": {"d_model": 128, "n_layers": 2, "parameters": 721_024, "tied": True},
        "models": [
            model("dense", 0.0, DENSE, decay(DENSE), 31.0),
            model("one_shot_50", 0.5, DENSE, decay(DENSE) + 0.21, 1.4),
            model("trained_50", 0.5, middle, decay(middle) * 1.001, 25.4),
            model("one_shot_70", 0.7, middle, decay(middle) + 0.52, 1.1),
            model("trained_70", 0.7, end, decay(end) * 1.0065, 25.1),
            model("dense_control", 0.0, end, decay(end), 50.2),
        ],
        "one_shot": [
            one_shot(method, sparsity)
            for method in ("magnitude", "wanda", "sparsegpt")
            for sparsity in (0.5, 0.7, 0.8, 0.9)
        ],
        "calibration": {"sequences": 64, "length": 256, "seed": 0, "text": "training"},
        "layers": {"trained_50": layers(0.5), "trained_70": layers(0.7)},
        "evaluation": {"window": 256, "stride": 256},
    }


def history(first, last, *, lift=0.0):
    """Rows every 5000 tokens; the noise depends on the tokens alone, as batches do."""
    rows = []
    for step, tokens in enumerate(range(first + 5_000, last + 1, 5_000), 1):
        noise = np.random.default_rng(tokens).normal() * 0.08
        fading = lift * math.exp(-(tokens - first) / 120_000)
        loss = (decay(tokens) + noise) * (1 + fading)
        rows.append({"step": 10 * step, "tokens": tokens, "loss": loss})
    return rows


def histories():
    middle, end = DENSE + STAGE, DENSE + 2 * STAGE
    return {
        "dense": history(0, DENSE),
        "trained_50": history(DENSE, middle, lift=0.08),
        "trained_70": history(middle, end, lift=0.2),
        "dense_control": history(DENSE, end),
    }
