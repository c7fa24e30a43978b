"""Rows of tokens to be scored: how long they are, and how long texts become rows."""

import dataclasses
from collections.abc import Iterator, Sequence

from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError

Ids = list[int]


@dataclasses.dataclass(frozen=True)
class Row:
    """Token ids of which the last `scored` are predicted, each from all before it."""

    ids: Ids
    scored: int
    truncated: bool = False


def checked_length(config: LlamaConfig, max_length: int | None) -> int:
    """The most tokens that are read at a time: what was asked for, else the model's.

    Raises:
      InputError: it is below 1, or longer than the model allows.
    """
    if max_length is None:
        return config.max_seq_len
    if max_length < 1:
        raise InputError(f"max_length must be >= 1, found {max_length}")
    config.check_length(max_length)
    return max_length


def share(rows: Sequence[Row], most: int) -> list[list[int]]:
    """Groups of rows that are equal but for their last token, the longest first.

    Args:
      rows: what is scored.
      most: rows of a group.

    Returns:
      The numbers of the rows of each group.

    Example:
      >>> share([Row([1, 5], 1), Row([1, 2, 3], 2), Row([1, 2, 4], 1)], most=8)
      [[1, 2], [0]]
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(tuple(row.ids[:-1]), []).append(number)
    ordered = sorted(groups, key=lambda ids: (-len(ids), ids))
    return [
        groups[ids][start : start + most]
        for ids in ordered
        for start in range(0, len(groups[ids]), most)
    ]


def buckets(longest: int) -> list[int]:
    """The lengths that rows are filled up to: 16, 24, 32, 48, 64, ... and `longest`.

    There are at most 2 log2(longest / 16) + 2 of them.

    Example:
      >>> buckets(100)
      [16, 24, 32, 48, 64, 96, 100]
    """
    sizes, power = [], 16
    while power < longest:
        sizes += [power, power + power // 2]
        power *= 2
    return [size for size in sizes if size < longest] + [longest]


def windows(ids: Ids, prefix_id: int, max_length: int) -> Iterator[Row]:
    """Cuts a text into rows that score each token once.

    Example:
      >>> for row in windows([5, 6, 7, 8, 9], prefix_id=1, max_length=3):
      ...     print(row.ids, row.scored)
      [1, 5, 6, 7] 3
      [6, 7, 8, 9] 2
    """
    whole = [prefix_id, *ids]
    done = min(max_length, len(ids))
    if done:
        yield Row(whole[: done + 1], done)
    while done < len(ids):
        more = min(max_length, len(ids) - done)
        done += more
        yield Row(whole[max(0, done - max_length) : done + 1], more)
