"""Solvers: (W, Hessian, pattern) -> (pruned weights, mask). They know no model."""

from sparse_jax.solvers.api import SOLVERS, find_solver, solve, solve_shared
from sparse_jax.solvers.hessian import accumulate, symmetrize
from sparse_jax.solvers.problem import Problem, Quantizer, Solution, output_energy

__all__ = [
    "SOLVERS",
    "Problem",
    "Quantizer",
    "Solution",
    "accumulate",
    "find_solver",
    "output_energy",
    "solve",
    "solve_shared",
    "symmetrize",
]
