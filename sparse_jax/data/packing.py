"""Rows of fixed length cut from one long stream of documents."""

import dataclasses

import numpy as np
from jaxtyping import Int, Shaped

from sparse_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """Documents in an order of their own, as one sequence of tokens.

    The documents stay where they are (usually in a memory-mapped file); the order is
    only a table, so that another seed costs no second copy.

    Attributes:
      tokens: [N] ids of all documents, each ended by a separator.
      starts: int64 [D], where the d-th document of the stream begins in `tokens`.
      bounds: int64 [D + 1], where it begins in the stream; the last is N.
    """

    tokens: Shaped[np.ndarray, " N"]
    starts: Int[np.ndarray, " D"]
    bounds: Int[np.ndarray, " D_and_1"]

    def num_rows(self, seq_len: int) -> int:
        """Rows of `seq_len` tokens; the ragged tail is left out."""
        return max(0, (len(self.tokens) - 1) // seq_len)

    def pack(
        self,
        index_B: Int[np.ndarray, " B"],
        *,
        seq_len: int,
        isolate_documents: bool,
    ) -> Batch:
        """Rows of a stream s: tokens s[iT : iT + T] and targets s[iT + 1 : iT + T + 1].

        `segment_ids` counts the documents inside a row from 0. With
        `isolate_documents`, positions restart at each document and a target that begins
        another document has loss weight 0; without, positions are 0..T-1 and every
        weight is 1.

        Args:
          index_B: row numbers, below `num_rows(seq_len)`.
          seq_len: T.
          isolate_documents: whether documents in a row are to be independent.

        Example:
          >>> documents = np.array([5, 6, 0, 7, 0])  # two of them; 0 ends each
          >>> stream = make_stream(documents, np.array([3, 2]), seed=1)
          >>> row = stream.pack(np.array([0]), seq_len=4, isolate_documents=True)
          >>> row.tokens, row.targets
          (array([[5, 6, 0, 7]], dtype=int32), array([[6, 0, 7, 0]], dtype=int32))
          >>> row.positions, row.loss_weights
          (array([[0, 1, 2, 0]], dtype=int32), array([[1., 1., 0., 1.]], dtype=float32))
        """
        row_start_B1 = index_B[:, None].astype(np.int64) * seq_len
        place_BS = row_start_B1 + np.arange(seq_len + 1)  # S = T + 1
        document_BS = np.searchsorted(self.bounds, place_BS, side="right") - 1
        within_BS = place_BS - self.bounds[document_BS]
        tokens_BS = self.tokens[self.starts[document_BS] + within_BS].astype(np.int32)
        document_BT = document_BS[:, :-1]
        positions_BT = place_BS[:, :-1] - row_start_B1
        weights_BT = np.ones_like(positions_BT, dtype=np.float32)
        if isolate_documents:
            # A document that began in an earlier row counts from the start of this one.
            positions_BT = np.minimum(positions_BT, within_BS[:, :-1])
            weights_BT[document_BT != document_BS[:, 1:]] = 0.0
        return Batch(
            tokens=tokens_BS[:, :-1],
            targets=tokens_BS[:, 1:],
            loss_weights=weights_BT,
            segment_ids=(document_BT - document_BT[:, :1]).astype(np.int32),
            positions=positions_BT.astype(np.int32),
        )


def make_stream(
    tokens: Shaped[np.ndarray, " N"], lengths: Int[np.ndarray, " D"], seed: int
) -> Stream:
    """Puts documents into a random order.

    Args:
      tokens: ids of all documents, one after another.
      lengths: tokens of each document; they add up to N.
      seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    bounds = np.concatenate([[0], np.cumsum(lengths[order], dtype=np.int64)])
    return Stream(tokens=tokens, starts=starts[order], bounds=bounds)
