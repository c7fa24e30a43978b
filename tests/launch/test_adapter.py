"""The launchers on a model with a low-rank adapter: computed with, or refused."""

import json
import re

import jax
import numpy as np
import pytest

from sparse_jax import data, io, models, recipe
from sparse_jax.evaluate import evaluate
from sparse_jax.models import LlamaConfig
from sparse_jax.sparsity import adapters
from sparse_jax.tree import from_paths, leaf_paths
from sparse_jax.types import InputError
from tests.launch.helpers import error_of, launch

TEXT = "The quick brown fox jumps over the lazy dog, again and again. " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pruned model with an adapter, without it, and with it merged."""
    path, rng = tmp_path_factory.mktemp("adapter"), np.random.default_rng(0)
    tokenizer = data.train_bpe([TEXT], vocab_size=280)
    config = LlamaConfig(
        vocab_size=280, d_model=32, d_ff=48, n_layers=1, n_heads=2, max_seq_len=64
    )
    params = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, np.float32), models.abstract_params(config)
    )
    params["embed"]["embedding"] = rng.standard_normal((280, 32), np.float32)
    params["lm_head"]["kernel"] = rng.standard_normal((32, 280), np.float32) / 8
    kernel = params["layers"]["mlp"]["down"]["kernel"]
    kernel[:, ::2] = 0
    masks = dict.fromkeys(leaf_paths(params)) | {"layers/mlp/down/kernel": kernel != 0}
    params, masks = jax.device_put((params, from_paths(masks)))
    factors = {"layers/mlp/down/slorb_s": rng.standard_normal((1, 3, 32), np.float32)}
    factors = jax.device_put(factors)
    merged = adapters.merge(params, factors)
    for name, weights, adapter in (
        ("model", params, factors),
        ("pruned", params, None),
        ("merged", merged, None),
    ):
        io.save(
            path / name,
            weights,
            config,
            masks=None if name == "merged" else masks,
            adapter=adapter,
            tokenizer_files=tokenizer.files,
        )
    (path / "test.txt").write_text(TEXT)
    return path


def test_evaluate_computes_with_it(folder, tmp_path):
    text, out = folder / "test.txt", tmp_path / "out.json"
    done = launch(
        "evaluate",
        f"--model={folder / 'model'}",
        f"--data={text}",
        "--window=32",
        f"--json={out}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert "adapter: from adapter.safetensors, low-rank factors" in found["source"]
    merged, pruned = (io.resolve(folder / name) for name in ("merged", "pruned"))
    losses = [
        evaluate(
            model.params,
            model.config,
            *data.stream_from_path(str(text), model.tokenizer),
            window=32,
        ).loss
        for model in (merged, pruned)
    ]
    assert found["loss"] == pytest.approx(losses[0], rel=1e-6)
    assert abs(found["loss"] - losses[1]) > 1e-3


def test_what_would_drop_it_refuses(folder, tmp_path):
    sentence, out = "holds an adapter (adapter.safetensors)", tmp_path / "out"
    done = launch("export", f"--model={folder / 'model'}", f"--out={out}")
    assert done.returncode == 2 and sentence in error_of(done)
    job = recipe.PruneJob(solver="magnitude", sparsity=0.5)
    with pytest.raises(InputError, match=re.escape(sentence)):
        recipe.run_prune(job, folder / "model", out)
    assert list(tmp_path.iterdir()) == []
