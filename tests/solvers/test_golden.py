"""Masks and errors of the public implementation, in reference mode.

The golden files' masks are True = PRUNED.
"""

import json

import numpy as np
import pytest

from sparse_jax.solvers import solve
from sparse_jax.solvers.oracle import relative_error
from sparse_jax.sparsity import NM, Unstructured

CASES = {
    "512_u50": True,
    "512_24": True,
    "512_u50_bs64_pd10": True,
    "96x200_dead_u50": True,
    "96x200_dead_24": True,
    # Grids full of exact ties, whose order the public implementation leaves open.
    "64x128_ties_u50": False,
    "64x128_ties_24": False,
}


@pytest.mark.parametrize("case", CASES)
def test_reference_mode_equals_the_public_implementation(case, shared_data):
    with np.load(shared_data / f"sparsegpt_golden/{case}.npz", allow_pickle=False) as f:
        golden = dict(f)
    options = json.loads(str(golden["opts"]))
    pattern = Unstructured(options["sparsity"])
    if options["prunem"]:
        m = options["prunem"]
        pattern = NM(m - options["prunen"], m)
    solution = solve(
        "sparsegpt",
        golden["W"],
        golden["H"],
        pattern,
        reference=True,
        block_size=options["blocksize"],
        damping=options["percdamp"],
    )
    if CASES[case]:
        assert np.mean(np.asarray(solution.mask) == golden["mask"]) <= 5e-4
    expected = relative_error(golden["W"], golden["Wp"], golden["H"])
    found = relative_error(golden["W"], solution.weights, golden["H"])
    assert found == pytest.approx(expected, rel=1e-3)
    assert solution.relative_error == pytest.approx(expected, rel=2e-3)
