"""Solvers by name: (W, H, pattern) -> pruned weights and their mask."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sparse_jax.solvers.admm import admm
from sparse_jax.solvers.gqsa import gqsa
from sparse_jax.solvers.one_shot import magnitude, wanda
from sparse_jax.solvers.problem import Problem, Quantizer, Solution, validate
from sparse_jax.solvers.refit import sparsegpt_refit
from sparse_jax.solvers.sparsegpt import sparsegpt
from sparse_jax.sparsity.patterns import Pattern
from sparse_jax.types import InputError

SOLVERS = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
    "sparsegpt_refit": sparsegpt_refit,
    "admm": admm,
    "gqsa": gqsa,
}
"""name -> solver(problems, hessian, **options) -> solutions, for a shared input."""

# Shapes that do not fit together are user input: `validate` names what is wrong.
Weights = Float[Array | np.ndarray, "..."]
Mask = Bool[Array | np.ndarray, "..."]
Hessian = Float[Array | np.ndarray, "..."]


def solve(
    name: str,
    W: Weights,
    H: Hessian | None,
    pattern: Pattern,
    *,
    prior_mask: Mask | None = None,
    quantizer: Quantizer | None = None,
    **options: Any,
) -> Solution:
    """Prunes one matrix, or every matrix of the leading axes on its own.

    minimise tr((W' - W) H (W' - W)^T) over W' with zeros in the pattern.

    Results are defined for degenerate problems, too. Weights of inputs that are always
    zero (H_jj = 0) become zeros, or rank lowest with Wanda; magnitude does not see the
    inputs. Where H is not positive definite, a solver that inverts it raises damping
    tenfold until it is, logs that, and records it in the solution; what is done then is
    still the method that was asked for.

    Args:
      name: "magnitude" or "wanda", which do not move weights; "sparsegpt";
        "sparsegpt_refit", its mask with the best weights on it; or "admm", a better
        mask as well. From left to right, errors fall and times rise. "gqsa" ranks whole
        groups by the inverse Hessian, and then compensates as SparseGPT does.
      W: weights [..., out, in].
      H: H = (2/n) X^T X, undamped, [..., in, in] or one [in, in] for all matrices;
        magnitude takes None too.
      pattern: the shape that zeros may take, with exact counts per matrix.
      prior_mask: True = kept; what it prunes stays zero.
      quantizer: rounds the survivors; solvers that move weights compensate for the
        rounding as well.
      **options: the solver's own, see the function of its name in this package.

    Raises:
      InputError: an unknown solver or option, arrays that do not fit together or are
        not finite, a pattern that does not divide W or prunes less than `prior_mask`.

    Example:
      >>> from sparse_jax.sparsity import Unstructured
      >>> W, H = jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 1.0], [1.0, 2.0]])
      >>> solution = solve("sparsegpt", W, H, Unstructured(0.5), damping=0.0)
      >>> solution.mask.tolist(), solution.weights.tolist()
      ([[False, True]], [[0.0, 2.5]])
      >>> round(solution.relative_error, 4)
      0.1071
    """
    priors = None if prior_mask is None else {"weights": prior_mask}
    quantizers = None if quantizer is None else {"weights": quantizer}
    solutions = solve_shared(
        name,
        {"weights": W},
        H,
        pattern,
        prior_masks=priors,
        quantizers=quantizers,
        **options,
    )
    return solutions["weights"]


def solve_shared(
    name: str,
    weights: Mapping[str, Weights],
    H: Hessian | None,
    pattern: Pattern | Mapping[str, Pattern],
    *,
    prior_masks: Mapping[str, Mask | None] | None = None,
    quantizers: Mapping[str, Quantizer | None] | None = None,
    **options: Any,
) -> dict[str, Solution]:
    """Prunes matrices that share an input (q/k/v, gate/up), and so one factorisation.

    Each matrix is ranked on its own; see `solve` for the arguments.

    Args:
      name: the solver.
      weights: matrices by name, [..., out, in] with any number of outputs.
      H: their common Hessian.
      pattern: one for all, or one per name.
      prior_masks: by name; a missing one means none.
      quantizers: by name; a missing one means none.
      **options: the solver's own.
    """
    solver = find_solver(name, options)
    problems = {}
    for key, matrix in weights.items():
        prior = (prior_masks or {}).get(key)
        problems[key] = Problem(
            jnp.asarray(matrix),
            pattern[key] if isinstance(pattern, Mapping) else pattern,
            None if prior is None else jnp.asarray(prior),
            (quantizers or {}).get(key),
        )
    hessian = None if H is None else jnp.asarray(H, jnp.float32)
    validate(problems, hessian)
    return solver(problems, hessian, **options)


def find_solver(name: str, options: Mapping[str, Any]):
    """Returns a solver by name.

    Raises:
      InputError: there is no such solver, or it has no such option.
    """
    if name not in SOLVERS:
        raise InputError(
            f"solver {name!r} is not known; expected one of {sorted(SOLVERS)}"
        )
    known = list(inspect.signature(SOLVERS[name]).parameters)[2:]
    for option in options:
        if option not in known:
            raise InputError(
                f"solver {name!r} has no option {option!r}; its options are "
                f"{known or 'none'}"
            )
    return SOLVERS[name]
