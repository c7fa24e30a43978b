"""Which zeros and which values are worth their bits: loss against bits and speed.

    python launch/train.py --config=configs/sparse70.py        # the model, once
    python launch/train.py --config=configs/equal_bits.py
        The dense control of the default run: dense in 16, 8, 4, 3 and 2 bits, and
        unstructured, 2:4, 8:16, 5:16 and groups with values of 16, 8 and 4 bits, each
        pruned and rounded in one solve. Those near GQSA's W4S50 in bits are trained as
        well, block by block and then their scales end to end, on equal tokens; GQSA's
        with three seeds.
    python launch/train.py --config=configs/equal_bits.py:tinystories \
        --config.model=DIR --config.data.sources.stories.path=FILE
        One of the two small models on TinyStories, or any other: not trained after it.
    python launch/train.py --config=configs/equal_bits.py:smoke
        Some of the points and a few steps, for CI; its numbers mean nothing.

    --config.model=DIR       another dense model
    --config.decode=False    no decoding is measured

The report has the chart, `equal_bits.png`, and its table: bits by the pattern's own
definition and in the packed file, loss, what rounding the activations adds, decoding
over dense float32 on 0.5B random weights. Stops and goes on point by point.
docs/quantization.md has the results.
"""

import dataclasses

from configs import common
from sparse_jax.data import DataConfig, SourceConfig
from sparse_jax.models import Compute
from sparse_jax.prune import PruneConfig
from sparse_jax.quant import GridConfig
from sparse_jax.recipe.equal_bits import DENSE, EqualBits, Value
from sparse_jax.train import ScheduleConfig, TrainConfig

PATTERNS = ("unstructured@0.5", "unstructured@0.7", "2:4", "8:16", "5:16")
GROUP = "group:16@0.5"

W8 = GridConfig(bits=8, group=0)
W4 = GridConfig(bits=4, group=128)
W3 = GridConfig(bits=3, group=128)
W2 = GridConfig(bits=2, group=64, symmetric=False)
# What group_int4 stores: a scale for each group that is kept, and perhaps a zero point.
G4 = GridConfig(bits=4, group=16)
G4Z = GridConfig(bits=4, group=16, symmetric=False)

TRAINED = ((DENSE, W4), (DENSE, W3), (DENSE, W2), ("2:4", W4), ("8:16", W4))
"""GQSA's rivals, and the dense 4 bits that all are compared with."""


def get_config(arg: str | None = None):
    variants = {None: default, "tinystories": tinystories, "smoke": smoke}
    return common.to_config(common.pick(variants, arg)())


def values(trained: bool) -> dict[str, Value]:
    """Every point by name; those of GQSA with three seeds where they are trained."""
    pairs = [(DENSE, grid) for grid in (None, W8, W4, W3, W2)]
    pairs += [(pattern, grid) for pattern in PATTERNS for grid in (None, W8, W4)]
    pairs += [(GROUP, None), (GROUP, W8)]
    found = [
        Value(pattern=p, grid=g, trained=trained and (p, g) in TRAINED)
        for p, g in pairs
    ]
    seeds = (0, 1, 2) if trained else (0,)
    found += [
        Value(pattern=GROUP, grid=grid, trained=trained, seeds=seeds)
        for grid in (G4, G4Z)
    ]
    return {value.name: value for value in found}


def default() -> EqualBits:
    return EqualBits(
        name="equal_bits",
        model="runs/sparse70/dense_control",
        values=values(trained=True),
        compute=Compute(scan_unroll=2),
        data=DataConfig(vocab_size=2048, heldout_limit=250_000),
        train=TrainConfig(
            steps=200,  # 204,800 tokens
            batch_size=8,
            seq_len=128,
            schedule=ScheduleConfig(
                kind="linear", peak=1e-3, warmup_steps=10, final_ratio=0.0
            ),
        ),
        prune=PruneConfig(samples=128, sample_length=128),
    )


def tinystories() -> EqualBits:
    whole = default()
    stories = SourceConfig(
        path="tinystories.txt", separator="<|endoftext|>", heldout_fraction=0.1
    )
    data = DataConfig(sources={"stories": stories}, heldout_limit=200_000)
    return dataclasses.replace(
        whole,
        name="equal_bits_tinystories",
        model=None,
        values=values(trained=False),
        data=data,
        compute=Compute(),
        decode=False,
    )


def smoke() -> EqualBits:
    whole = default()
    chosen = {"w16_dense", "w4_dense", "w4_2of4", "w4_g50"}
    some = {n: v for n, v in whole.values.items() if n in chosen}
    some = {n: dataclasses.replace(v, seeds=(0,)) for n, v in some.items()}
    return dataclasses.replace(
        whole,
        name="equal_bits_smoke",
        values=some,
        data=dataclasses.replace(whole.data, heldout_limit=20_000),
        train=dataclasses.replace(whole.train, steps=20),
        prune=dataclasses.replace(whole.prune, samples=16),
        decode_size="tiny",
    )
