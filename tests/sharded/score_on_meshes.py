"""Log-likelihoods on a mesh of 8 devices and on one; prints JSON for the test.

Run in a process of its own: the number of devices is fixed when JAX starts.
"""

import json

import jax
import numpy as np

from sparse_jax import data
from sparse_jax import mesh as mesh_lib
from sparse_jax.evaluate import Scorer
from sparse_jax.evaluate.rows import Row
from sparse_jax.mesh import MeshConfig
from tests.sharded.models8 import MODEL, params_and_masks

MESHES = {"one": MeshConfig(), "eight": MeshConfig(data=2, fsdp=2, tensor=2)}


def rows() -> list[Row]:
    """Rows of 2 to 30 tokens, some of which differ in their last one alone."""
    rng, made = np.random.default_rng(0), []
    for length in range(2, 31):
        ids = rng.integers(0, MODEL.vocab_size, length).tolist()
        made.append(Row(ids, int(rng.integers(1, length))))
    return [*made, *(Row([*made[9].ids[:-1], last], 2) for last in range(5))]


def main() -> None:
    tokenizer = data.train_bpe(["the quick brown fox " * 9], vocab_size=258)
    found = {}
    for name, config in MESHES.items():
        made = mesh_lib.make_mesh(config)
        params = jax.tree.map(lambda w: 4 * w, params_and_masks()[0])
        with jax.set_mesh(made):
            scorer = Scorer(params, MODEL, tokenizer, max_length=32, batch_size=6)
            scores = scorer.score(rows())
        found[name] = [[s.logprob, s.is_greedy, s.tokens] for s in scores]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
