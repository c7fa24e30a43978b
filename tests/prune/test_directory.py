"""A model on disk pruned block by block: the bits of pruning in memory, kill or not."""

import jax
import numpy as np
import pytest

from sparse_jax import io
from sparse_jax.models import Compute, LlamaConfig, init
from sparse_jax.prune import (
    AllocationConfig,
    BlockTrainingConfig,
    LowRank,
    Outliers,
    PruneConfig,
    QuantizeConfig,
    prune,
    prune_directory,
)
from sparse_jax.quant import GridConfig
from sparse_jax.tree import leaf_paths
from sparse_jax.types import InputError

# Square matrices only: they share compiled programs.
MODEL = LlamaConfig(
    vocab_size=32, d_model=16, d_ff=16, n_layers=3, n_heads=2, max_seq_len=16
)
TOKENS = np.random.default_rng(0).integers(0, 32, (6, 8), np.int32)
CONFIG = PruneConfig(sparsity=0.6, batch_size=4)


@pytest.fixture(scope="module")
def params():
    return init(jax.random.key(0), MODEL)


@pytest.fixture(scope="module")
def dense(params, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "dense"
    io.save(directory, params, MODEL)
    return io.open_blocks(directory)


def assert_equal_files(one, other):
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class Killed(Exception):
    pass


def kill_after(blocks):
    def progress(done, total):
        if done == blocks:
            raise Killed

    return progress


def test_the_directory_holds_what_pruning_in_memory_gives(params, dense, tmp_path):
    rows = prune_directory(dense, tmp_path / "sparse", TOKENS, CONFIG)
    expected, masks, expected_rows, *_ = prune(params, None, TOKENS, MODEL, CONFIG)
    found = io.resolve(tmp_path / "sparse")
    for path, leaf in leaf_paths(expected).items():
        np.testing.assert_array_equal(leaf_paths(found.params)[path], leaf)
    for path, mask in leaf_paths(masks).items():
        if mask is not None:
            np.testing.assert_array_equal(leaf_paths(found.masks)[path], mask)
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row | {"seconds": 0} == expected_row | {"seconds": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["sparse"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(dense, tmp_path, dtype):
    options = {"dtype": dtype, "spool": tmp_path / "spool"}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    prune_directory(dense, whole, TOKENS, CONFIG, **options)
    for blocks in (1, 2):
        with pytest.raises(Killed):
            prune_directory(
                dense, resumed, TOKENS, CONFIG, progress=kill_after(blocks), **options
            )
        assert not resumed.exists()
    times = []
    rows = prune_directory(
        dense, resumed, TOKENS, CONFIG, progress=lambda *t: times.append(t), **options
    )
    assert_equal_files(whole, resumed)
    assert len(rows) == 21
    assert not (tmp_path / "resumed.unfinished").exists()


def test_nested_pruning_continues_from_masks_on_disk(dense, tmp_path):
    prune_directory(dense, tmp_path / "half", TOKENS, PruneConfig(sparsity=0.5))
    half = io.open_blocks(tmp_path / "half")
    prune_directory(half, tmp_path / "more", TOKENS, PruneConfig(sparsity=0.75))
    more = io.open_blocks(tmp_path / "more")
    for index in range(MODEL.n_layers):
        for path, mask in more.layer_masks(index).items():
            assert not (mask & ~half.layer_masks(index)[path]).any()
    with pytest.raises(InputError, match=r"block 0, layers/attention/q/kernel: .*0.5"):
        prune_directory(half, tmp_path / "less", TOKENS, PruneConfig(sparsity=0.25))


def test_unfinished_work_of_another_command_is_refused(dense, tmp_path):
    out = tmp_path / "sparse"
    with pytest.raises(Killed):
        prune_directory(dense, out, TOKENS, CONFIG, progress=kill_after(1))
    for tokens, config, compute, field in (
        (TOKENS, PruneConfig(sparsity=0.7, batch_size=4), Compute(), "config"),
        (TOKENS[:4], CONFIG, Compute(), "tokens"),
        (TOKENS, CONFIG, Compute(dtype="bfloat16"), "compute"),
    ):
        with pytest.raises(InputError, match=f"another {field} .*delete it"):
            prune_directory(dense, out, tokens, config, compute=compute)


def test_an_output_that_is_not_empty_is_refused(dense, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        prune_directory(dense, tmp_path, TOKENS, CONFIG)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_an_allocation_is_measured_once_and_resumed(params, dense, tmp_path):
    config = PruneConfig(
        sparsity=0.6, batch_size=4, allocation=AllocationConfig(kind="error")
    )
    rows = prune_directory(dense, tmp_path / "whole", TOKENS, config)
    _, _, expected, *_ = prune(params, None, TOKENS, MODEL, config)
    for row, expected_row in zip(rows, expected, strict=True):
        assert row | {"seconds": 0} == expected_row | {"seconds": 0}
    assert len({row["sparsity"] for row in rows}) > 3
    sizes = {path: leaf[0].size for path, leaf in leaf_paths(params).items()}
    pruned = sum(round(row["sparsity"] * sizes[row["path"]]) for row in rows)
    assert pruned == 3 * sum(int(sizes[row["path"]] * 0.6) for row in rows[:7])
    # Six steps: three blocks measured, three pruned; killed in both halves.
    for step in (2, 4):
        with pytest.raises(Killed):
            prune_directory(
                dense, tmp_path / "again", TOKENS, config, progress=kill_after(step)
            )
    prune_directory(dense, tmp_path / "again", TOKENS, config)
    assert_equal_files(tmp_path / "whole", tmp_path / "again")


ROUNDED = {
    "beside": QuantizeConfig(
        grid=GridConfig(bits=3, group=8),
        low_rank=LowRank(),
        outliers=Outliers(fraction=0.02),
        leave_out=("layers/1/mlp/down/kernel",),
    ),
    "tuned": QuantizeConfig(
        grid=GridConfig(bits=3, group=8, symmetric=False),
        activations="static",
        tune=BlockTrainingConfig(epochs=1),
    ),
}


@pytest.mark.parametrize("kind", [*ROUNDED])
def test_a_rounded_model_is_that_in_memory_killed_or_not(params, dense, tmp_path, kind):
    quantize = ROUNDED[kind]
    config = PruneConfig(pattern="2:4", batch_size=4, quantize=quantize)
    rows = prune_directory(dense, tmp_path / "whole", TOKENS, config)
    with pytest.raises(Killed):
        prune_directory(
            dense, tmp_path / "again", TOKENS, config, progress=kill_after(2)
        )
    prune_directory(dense, tmp_path / "again", TOKENS, config)
    assert_equal_files(tmp_path / "whole", tmp_path / "again")
    expected = prune(params, None, TOKENS, MODEL, config)
    found = io.resolve(tmp_path / "whole")
    for path, leaf in leaf_paths(expected.params).items():
        np.testing.assert_array_equal(leaf_paths(found.params)[path], leaf)
    assert set(found.grids) == set(expected.grids)
    for key, grid in expected.grids.items():
        jax.tree.map(np.testing.assert_array_equal, found.grids[key], grid)
    assert set(found.adapter or {}) == set(expected.adapter)
    for path, leaf in expected.adapter.items():
        np.testing.assert_array_equal(found.adapter[path], leaf)
    if kind == "tuned":
        before, after = rows[0]["block_error"]
        assert after <= before
        scales = dict(found.activations.scales)
        assert scales == pytest.approx(expected.input_scales)
