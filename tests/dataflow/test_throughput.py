"""The time of a step: its ideals, its limits, and every way an overhead may act."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_jax import dataflow, models
from sparse_jax.dataflow import IDEAL, memory
from sparse_jax.dataflow.cost import CAUSES
from sparse_jax.dataflow.products import element_costs, layouts, place, product_cost
from sparse_jax.dataflow.workload import Workload, prunable
from sparse_jax.evaluate import training_flops_per_token
from sparse_jax.models import LlamaConfig, sizes
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError

MODEL = LlamaConfig(
    vocab_size=64, d_model=32, d_ff=48, n_layers=2, n_heads=4, n_kv_heads=2
)
SMALL = dataflow.machine("cs3").replace(grid_rows=2, grid_columns=8)
WORK = Workload(model=MODEL, batch=3, context=40)
LLAMA = sizes.get("llama2_7b")
KINDS = ("uniform", "balanced", "sparsegpt")


def speedups(machine, work, masks):
    dense = dataflow.simulate(machine, work)
    sparse = dataflow.simulate(machine, work, masks)
    matrices = dense.matrices.seconds / sparse.matrices.seconds
    return matrices, dense.seconds / sparse.seconds


@pytest.mark.parametrize(
    ("gradient", "context", "speedup"),
    [
        ("kept", 2048, 2.94),
        ("kept", 4096, 2.74),
        ("dense", 2048, 1.78),
        ("dense", 4096, 1.73),
    ],
)
def test_the_ideals_of_llama2_7b_at_70_percent(gradient, context, speedup):
    work = Workload(model=LLAMA, batch=1, context=context, weight_gradient=gradient)
    assert round(work.ideal_speedup(0.3), 2) == speedup


def test_arithmetic_is_counted_as_the_reports_count_it():
    for model in (LLAMA, MODEL, sizes.get("llama3.2_1b")):
        work = Workload(model=model, batch=2, context=512)
        per_token = training_flops_per_token(model, 512)
        assert work.flops() == pytest.approx(per_token * work.tokens, rel=1e-12)
    rng = np.random.default_rng(0)
    masks = jax.tree.map(
        lambda leaf: rng.random(leaf.shape) < 0.4 if len(leaf.shape) == 3 else None,
        models.abstract_params(MODEL),
    )
    linear = [mask for mask in leaf_paths(masks).values() if mask is not None]
    kept = sum(map(np.sum, linear)) / sum(mask.size for mask in linear)
    per_token = training_flops_per_token(MODEL, 40, masks)
    assert WORK.flops(kept) == pytest.approx(per_token * WORK.tokens, rel=1e-12)


@given(
    sparsity=st.floats(0.0, 0.999),
    size=st.sampled_from(["tiny", "llama2_7b", "llama3_8b"]),
    name=st.sampled_from([*dataflow.MACHINES]),
    kind=st.sampled_from(KINDS),
    gradient=st.sampled_from(dataflow.WEIGHT_GRADIENTS),
    mode=st.sampled_from(dataflow.MODES),
    recompute=st.booleans(),
    batch=st.integers(1, 40),
)
@settings(max_examples=40, deadline=None)
def test_without_overheads_the_ideal_comes_out(
    sparsity, size, name, kind, gradient, mode, recompute, batch
):
    work = Workload(
        model=sizes.get(size),
        batch=batch,
        context=200,
        mode=mode,
        weight_gradient=gradient,
        recompute=recompute,
    )
    machine = dataflow.machine(name).ideal()
    masks = dataflow.DrawnMasks(kind, sparsity)
    matrices, step = speedups(machine, work, masks)
    kept = 1 - sparsity
    if mode != "training" or gradient == "kept":
        assert matrices == pytest.approx(1 / kept, rel=1e-12)
    else:
        forward = 3 if recompute else 2
        ideal = (forward + 1) / (forward * kept + 1)
        assert matrices == pytest.approx(ideal, rel=1e-12)
    assert step == pytest.approx(work.ideal_speedup(kept), rel=1e-12)
    peak = 2 * machine.lanes.value * machine.clock_hz.value
    peak *= machine.grid_rows.value * machine.grid_columns.value
    seconds = dataflow.simulate(machine, work, masks).seconds
    assert work.flops(kept) / seconds == pytest.approx(peak, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", dataflow.MODES)
def test_nothing_pruned_is_exactly_as_fast(kind, mode):
    work = dataclasses.replace(WORK, mode=mode)
    assert speedups(SMALL, work, dataflow.DrawnMasks(kind, 0.0)) == (1.0, 1.0)
    full = FakeBlocks(lambda shape: np.ones(shape, bool))
    assert speedups(SMALL, work, dataflow.ModelMasks(full)) == (1.0, 1.0)


MASKS = dataflow.DrawnMasks("uniform", 0.6)
WORSE = {  # from better to worse, beginning with none
    "rows_in_flight": [math.inf, 40, 7, 2, 1],
    "sram_bytes_per_cycle": [math.inf, 24.0, 6.0, 1.5],
    "stream_in_bytes_per_s": [math.inf, 1e12, 1e10, 1e8],
    "stream_out_bytes_per_s": [math.inf, 1e12, 1e10, 1e8],
    "dense_efficiency": [1.0, 0.5, 0.01],
    "layer_latency_s": [0.0, 1e-7, 1e-5],
    "system_hop_s": [0.0, 1e-7, 1e-5],
}


@pytest.mark.parametrize("name", IDEAL)
@pytest.mark.parametrize("ideal", [False, True], ids=["real", "ideal"])
@pytest.mark.parametrize("masks", [None, MASKS], ids=["dense", "sparse"])
def test_no_overhead_saves_time(name, ideal, masks):
    values = WORSE.get(name, [0, 1, 2, 5, 30])
    assert values[0] == IDEAL[name]
    # A slow link, or how many bytes go over it would not matter.
    base = SMALL.replace(stream_in_bytes_per_s=1e9, hop_cycles=3)
    base = SMALL.ideal() if ideal else base
    seconds = [
        dataflow.simulate(base.replace(**{name: x}), WORK, masks, systems=4).seconds
        for x in values
    ]
    assert seconds == sorted(seconds)
    free = {"index_bytes"} if masks is None or ideal else set()
    free |= {"rows_in_flight"} if ideal else set()
    assert name in free or seconds[-1] > seconds[0]


def test_causes_add_up_to_the_cycles_of_the_timeline():
    """One product of a real mask, its wait included, to the cycle."""
    rng = np.random.default_rng(1)
    blocks = FakeBlocks(lambda shape: rng.random(shape) < 0.3)
    masks = dataflow.ModelMasks(blocks)
    gate = next(m for m in WORK.matrices if m.path.endswith("gate/kernel"))
    kept_OI = np.asarray(blocks.layer_masks(0)[gate.path]).T
    layout = place(SMALL, WORK.tokens, 2)
    for product, transposed in (
        ("forward", False),
        ("input_gradient", True),
        ("weight_gradient", False),
    ):
        stream = masks.stream(0, gate, transposed)
        costs = element_costs(SMALL, layout, product, stream)
        counts = dataflow.slice_counts(kept_OI.T if transposed else kept_OI, 4)
        run = dataflow.timeline(
            counts,
            weight_cycles=costs.weight,
            row_cycles=costs.row,
            reduction_cycles=costs.reduction,
            rows_in_flight=costs.rows_in_flight,
        )
        cost = product_cost(SMALL, layout, product, stream)
        cycles = (cost.seconds - cost.latency) * SMALL.clock_hz.value
        assert cycles == pytest.approx(run.total, rel=1e-12)
        assert min(getattr(cost, cause) for cause in CAUSES) >= 0
        floor = product_cost(SMALL, layout, product, stream, waiting=False)
        assert floor.seconds <= cost.seconds


def test_a_slow_link_is_all_that_counts():
    """Values alone where that is less; gradients without their positions."""
    machine = SMALL.replace(
        stream_in_bytes_per_s=1e3, stream_out_bytes_per_s=1e2, layer_latency_s=0.0
    )
    weights = sum(matrix.size for matrix in WORK.matrices) * MODEL.n_layers
    for sparsity, sent in ((0.0, 2.0), (0.25, 2.0), (0.75, 1.0)):
        masks = dataflow.DrawnMasks("balanced", sparsity)
        step = dataflow.simulate(machine, WORK, masks)
        out = max(2.0 * (1 - sparsity) / 1e2, sent / 1e3)
        expected = weights * (sent / 1e3 + out)
        assert step.matrices.seconds == pytest.approx(expected, rel=1e-9)
    reading = dataclasses.replace(WORK, mode="prefill")
    step = dataflow.simulate(machine, reading)
    assert step.matrices.seconds == pytest.approx(2.0 * weights / 1e3, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_is_the_best_there_is(kind):
    masks = dataflow.DrawnMasks(kind, 0.7)
    best = dataflow.simulate(SMALL, WORK, masks)
    tried = layouts(SMALL, WORK.tokens)
    times = [dataflow.simulate(SMALL, WORK, masks, layout=x).seconds for x in tried]
    assert len(tried) == 4 and best.seconds == min(times)


def test_balance_is_worth_something():
    machine = SMALL.replace(grid_columns=16, rows_in_flight=2)
    layout = place(machine, WORK.tokens, 1)
    times = {
        kind: dataflow.simulate(
            machine, WORK, dataflow.DrawnMasks(kind, 0.7), layout=layout
        ).matrices
        for kind in KINDS
    }
    assert times["balanced"].imbalance < times["uniform"].imbalance
    assert times["balanced"].imbalance < times["sparsegpt"].imbalance


def test_modes_do_what_they_say():
    read = dataclasses.replace(WORK, mode="prefill")
    write = dataclasses.replace(WORK, mode="decode")
    assert (WORK.tokens, read.tokens, write.tokens) == (120, 120, 3)
    assert (WORK.head_tokens, read.head_tokens, write.head_tokens) == (120, 3, 3)
    per_token = 4 * 32 * 40
    assert write.attention_flops == per_token * 3
    assert read.attention_flops == per_token / 2 * 120
    steps = [dataflow.simulate(SMALL, work, MASKS) for work in (WORK, read, write)]
    assert steps[0].seconds > 2 * steps[1].seconds > steps[2].seconds
    passes = [set(step.layers[0]["layers/mlp/up/kernel"]) for step in steps]
    assert passes == [{"forward", "backward"}, {"forward"}, {"forward"}]
    again = dataflow.simulate(SMALL, dataclasses.replace(WORK, recompute=True), MASKS)
    assert "recompute" in again.layers[0]["layers/mlp/up/kernel"]
    assert steps[0].seconds < again.seconds < 1.5 * steps[0].seconds


def test_systems_share_the_stream_at_the_price_of_hops():
    one = dataflow.simulate(SMALL, WORK, MASKS)
    four = dataflow.simulate(SMALL, WORK, MASKS, systems=4, layout=one.layout)
    products = 2 * (7 * MODEL.n_layers + 1)
    assert four.seconds - one.seconds == pytest.approx(products * 2 * 1e-6, rel=1e-6)
    with pytest.raises(InputError, match="systems must be at least 1, found 0"):
        dataflow.simulate(SMALL, WORK, systems=0)


def test_what_fits_is_what_the_formula_says():
    """Layer inputs, the widest layer with its gradients, in 2 bytes each."""
    inputs, mlp = 2 * 32, 2 * (32 + 3 * 48)
    assert WORK.resident_values == 120 * (inputs + mlp)
    wide = dataclasses.replace(WORK, model=dataclasses.replace(MODEL, vocab_size=900))
    assert wide.resident_values == 120 * (inputs + 900 + 32)
    decode = dataclasses.replace(WORK, mode="decode")
    cache = 3 * 40 * 2 * 2 * 16
    assert decode.resident_values == cache + 3 * (32 + 32 + 3 * 48)
    for mode in dataflow.MODES:
        work = dataflow.fit(SMALL, MODEL, context=40, mode=mode)
        memory.check(SMALL, work)
        more = dataclasses.replace(work, batch=work.batch + 1)
        with pytest.raises(InputError, match=f"at most {work.batch} sequences fit"):
            memory.check(SMALL, more)


def test_a_sequence_too_long_is_told_how_short_it_must_be():
    tiny = SMALL.replace(grid_rows=1, grid_columns=1)
    with pytest.raises(InputError, match="not even one fits; choose a context of") as e:
        dataflow.fit(tiny, MODEL)
    context = int(str(e.value).split()[-1])
    work = dataflow.fit(tiny, MODEL, context=context)
    assert work.batch == 1
    with pytest.raises(InputError, match="not even one fits"):
        dataflow.fit(tiny, MODEL, context=context + 1)


class FakeBlocks:
    """Masks [in, out] of every matrix, drawn once for each layer."""

    config = MODEL

    def __init__(self, draw):
        self.masks = [
            {m.path: draw((m.inputs, m.outputs)) for m in prunable(MODEL)}
            for _ in range(MODEL.n_layers)
        ]

    def layer_masks(self, index):
        return {path: jax.numpy.asarray(m) for path, m in self.masks[index].items()}


def test_a_models_masks_are_counted_layer_by_layer():
    rng = np.random.default_rng(2)
    blocks = FakeBlocks(lambda shape: rng.random(shape) < 0.3)
    del blocks.masks[1]["layers/mlp/up/kernel"]  # a rule left it dense
    step = dataflow.simulate(SMALL, WORK, dataflow.ModelMasks(blocks))
    for layer, masks in enumerate(blocks.masks):
        kept = sum(
            masks[m.path].sum() if m.path in masks else m.size for m in WORK.matrices
        )
        assert step.kept[layer] == kept / WORK.layer_weights
    up = [layer["layers/mlp/up/kernel"]["forward"] for layer in step.layers]
    assert up[1].compute > 2 * up[0].compute
    first = dataflow.ModelMasks(blocks, first_layer=True)
    assert dataflow.simulate(SMALL, WORK, first).kept == step.kept[:1] * 2


def test_a_mask_of_another_shape_is_refused():
    blocks = FakeBlocks(lambda shape: np.ones(shape, bool))
    blocks.masks[1]["layers/mlp/up/kernel"] = np.ones((32, 47), bool)
    with pytest.raises(
        InputError,
        match=r"layer 1: the mask of layers/mlp/up/kernel has shape \[32, 47\], its "
        r"weight \[32, 48\]",
    ):
        dataflow.simulate(SMALL, WORK, dataflow.ModelMasks(blocks))


@pytest.mark.parametrize(
    ("kind", "texts", "message"),
    [
        ("uniform", ["1"], r"sparsity must be in \[0, 1\), found 1.0"),
        ("uniform", ["-0.1"], r"sparsity must be in \[0, 1\), found -0.1"),
        ("uniform", ["nan"], r"sparsity must be in \[0, 1\), found nan"),
        ("uniform", ["0.5", "much"], r"must be a number in \[0, 1\), found 'much'"),
        ("random", ["0.5"], r"masks 'random' is unknown; choose one of \['uniform'"),
    ],
)
def test_masks_that_cannot_be_drawn(kind, texts, message):
    with pytest.raises(InputError, match=message):
        dataflow.drawn_masks(kind, texts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, found 0"),
        ({"context": 0}, "context must be at least 1, found 0"),
        ({"context": 4097}, "a sequence of 4097 tokens is longer than the model"),
    ],
)
def test_workloads_that_cannot_be(fields, message):
    with pytest.raises(InputError, match=message):
        dataflow.fit(SMALL, LLAMA, **fields)
