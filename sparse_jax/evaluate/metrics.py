"""Means of what documents contribute, with their standard errors."""

import dataclasses
import math
from collections.abc import Sequence

from sparse_jax.types import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric over all documents.

    Attributes:
      value: the metric.
      stderr: its standard error over the choice of documents; None of a single one.
    """

    value: float
    stderr: float | None


def mean(values: Sequence[float]) -> Estimate:
    """The mean m and s / sqrt(n), with s^2 = sum (x - m)^2 / (n - 1).

    Example:
      >>> mean([1.0, 0.0, 1.0, 0.0])
      Estimate(value=0.5, stderr=0.28867513459481287)
    """
    count = len(values)
    value = math.fsum(values) / count
    if count == 1:
        return Estimate(value=value, stderr=None)
    squares = math.fsum((x - value) ** 2 for x in values)
    return Estimate(value=value, stderr=math.sqrt(squares / (count - 1) / count))


def perplexity(logprobs: Sequence[float]) -> Estimate:
    """exp(-mean), over documents as lm-eval takes it, not over tokens.

    Its standard error is exp(-mean) x that of the mean, which is what a bootstrap over
    many documents tends to.

    Example:
      >>> round(perplexity([-1.0, -3.0]).value, 3)
      7.389
    """
    found = mean(logprobs)
    if found.value < -700:  # its exponential overflows a float
        return Estimate(value=math.inf, stderr=None)
    value = math.exp(-found.value)
    stderr = None if found.stderr is None else value * found.stderr
    return Estimate(value=value, stderr=stderr)


def mean_of_groups(groups: Sequence[Sequence[float]]) -> Estimate:
    """The mean over all documents of several groups.

    The standard error is lm-eval's: of groups of n_g documents with standard errors e_g

        sqrt(sum_g (n_g - 1) n_g e_g^2 / (sum_g n_g - groups) / sum_g n_g)

    It is None where all groups have one document.
    """
    sizes = [len(group) for group in groups]
    count, found = sum(sizes), [mean(group) for group in groups]
    value = math.fsum(x for group in groups for x in group) / count
    if count == len(groups):
        return Estimate(value=value, stderr=None)
    pooled = math.fsum(
        (size - 1) * size * (part.stderr or 0.0) ** 2
        for size, part in zip(sizes, found, strict=True)
    )
    variance = pooled / (count - len(groups))
    return Estimate(value=value, stderr=math.sqrt(variance / count))


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The probability that one of k samples passes, without bias.

        1 - C(n - c, k) / C(n, k)

    Args:
      samples: n, programs that were tried.
      passed: c, how many of them passed.
      k: at most n.

    Raises:
      InputError: k is not in [1, n].

    Example:
      >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 3, 2)
      (0.25, 0.5, 1.0)
    """
    if not 1 <= k <= samples:
        raise InputError(f"pass@k: k must be from 1 to {samples} samples, found {k}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def mean_of_means(groups: Sequence[Sequence[float]]) -> Estimate:
    """The mean over groups of their means, each group alike however large.

    The standard error is sqrt(sum_g e_g^2) / groups; None where a group has only one
    document.
    """
    found = [mean(group) for group in groups]
    value = math.fsum(part.value for part in found) / len(found)
    errors = [part.stderr for part in found if part.stderr is not None]
    if len(errors) < len(found):
        return Estimate(value=value, stderr=None)
    squares = math.fsum(error**2 for error in errors)
    return Estimate(value=value, stderr=math.sqrt(squares) / len(found))
