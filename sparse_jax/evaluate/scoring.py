"""Log-likelihoods of texts under a model.

For a context c and a continuation y of n tokens

    logprob = sum_i log p(y_i | c, y_1 .. y_(i-1))        [nats]

with float32 terms summed in float64. The cut between the two, and what is done where
they are longer than the model allows, is that of lm-eval's Hugging Face backend, see
`encoding`.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
import tqdm

from sparse_jax import mesh as mesh_lib
from sparse_jax.data.tokenizer import Tokenizer
from sparse_jax.evaluate.encoding import Encoder, Ids
from sparse_jax.evaluate.logprobs import token_logprobs
from sparse_jax.evaluate.rows import Row, buckets, checked_length, share, windows
from sparse_jax.models import Compute, LlamaConfig
from sparse_jax.types import InputError, Params

_PIECE = 1024
"""Tokens whose logits exist at one time on a device, `Compute.loss_chunk` at most."""

_LASTS = 8
"""Rows that differ in their last token alone and are read as one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What a model gives to one continuation, or to one whole text.

    Attributes:
      logprob: natural logarithm of its probability.
      is_greedy: whether each of its tokens was the likeliest.
      tokens: how many were scored.
      truncated: whether tokens were left out because all of them do not fit.
    """

    logprob: float
    is_greedy: bool
    tokens: int
    truncated: bool = False


class Scorer:
    """Scores texts with a model in memory.

    Rows are sorted by length, the longest first, and filled up to one of a few lengths
    (`buckets`), so that it compiles at most one program per bucket. On the mesh that is
    set, batches are cut over its axes data and fsdp; all its processes call this, and
    get the same.

    Attributes:
      encoder: how texts become tokens.
      max_length: the most tokens that the model reads at a time.

    Example:
        scorer = Scorer(params, config, tokenizer)
        [score] = scorer.loglikelihood([("The sky is", " blue")])
        print(score.logprob, score.is_greedy)
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        batch_size: int = 16,
        compute: Compute = Compute(),
        add_bos_token: bool | None = None,
    ):
        """Places the parameters; compiles nothing yet.

        Args:
          params: float32 parameters, masks applied.
          config: architecture.
          tokenizer: of the model.
          max_length: tokens that are read at a time; None = `config.max_seq_len`.
          batch_size: rows per call of the model; on a mesh it is rounded up to what the
            batch axes divide.
          compute: dtype and scan options.
          add_bos_token: see `Encoder`.

        Raises:
          InputError: batch_size or max_length is out of range, or see `Encoder`.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be >= 1, found {batch_size}")
        self.encoder = Encoder(tokenizer, add_bos_token)
        self.max_length = checked_length(config, max_length)
        self._config, self._compute = config, compute
        self._mesh = mesh_lib.current()
        shards = mesh_lib.batch_shards()
        self._rows = -(-batch_size // shards) * shards
        if self._mesh.size > 1:
            shardings = mesh_lib.shardings(self._mesh, params)
            params = jax.device_put(params, shardings)
        self._params = params

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """Scores continuations.

        The last max_length + 1 tokens are kept, the last of which is not read. A
        continuation that is longer loses its own first tokens, too.

        Args:
          requests: (context, continuation) of each.

        Raises:
          InputError: a continuation has no token of its own, a token is outside the
            vocabulary, or a probability is NaN or infinite.
        """
        rows = []
        for context, continuation in self.encoder.pairs(requests):
            ids = context + continuation
            kept = ids[-(self.max_length + 1) :]
            scored = min(len(continuation), len(kept) - 1)
            rows.append(Row(kept, scored, len(kept) < len(ids)))
        return self.score(rows)

    def rolling(self, texts: Sequence[str]) -> list[Score]:
        """Scores whole texts, each of their tokens once.

        The first max_length tokens are read behind the prefix token; those that follow
        in windows that overlap as little as possible, each behind at least one token.
        An empty text has logprob 0.

        Args:
          texts: what is scored.

        Raises:
          InputError: see `loglikelihood`.
        """
        encoded = [
            list(windows(ids, self.encoder.prefix_id, self.max_length))
            for ids in self.encoder.encode(texts)
        ]
        scores = iter(self.score([row for rows in encoded for row in rows]))
        found = []
        for rows in encoded:
            parts = [next(scores) for _ in rows]
            found.append(
                Score(
                    logprob=math.fsum(part.logprob for part in parts),
                    is_greedy=all(part.is_greedy for part in parts),
                    tokens=sum(part.tokens for part in parts),
                )
            )
        return found

    def score(self, rows: Sequence[Row]) -> list[Score]:
        """Scores rows of tokens, each at most max_length + 1 long.

        Rows that differ in their last token alone are read once, as are the one-letter
        answers to a question.

        Raises:
          InputError: see `loglikelihood`.
        """
        for row in rows:
            self._check(row.ids)
        shared = share(rows, _LASTS)
        found: dict[int, Score] = {}
        off = True if jax.process_index() else None
        with tqdm.tqdm(desc="scoring", total=len(rows), unit="row", disable=off) as bar:
            for start in range(0, len(shared), self._rows):
                batch = shared[start : start + self._rows]
                for numbers, sums in zip(batch, self._read(batch, rows), strict=True):
                    for number, (logprob, greedy) in zip(numbers, sums, strict=True):
                        found[number] = _result(rows[number], logprob, greedy)
                    bar.update(len(numbers))
        return [found[number] for number in range(len(rows))]

    def _check(self, ids: Ids) -> None:
        vocab = self._config.vocab_size
        wrong = next((i for i in ids if not 0 <= i < vocab), None)
        if wrong is not None:
            raise InputError(
                f"token id {wrong} is outside the model's vocabulary of {vocab}; use "
                "the tokenizer the model was trained with"
            )

    def _read(
        self, batch: Sequence[Sequence[int]], rows: Sequence[Row]
    ) -> list[list[tuple[float, bool]]]:
        """Log-probability, and whether it is greedy, of the rows of each group."""
        groups = [[rows[number] for number in numbers] for numbers in batch]
        longest = max(len(group[0].ids) - 1 for group in groups)
        length = next(n for n in buckets(self.max_length) if n >= longest)
        share = self._rows // mesh_lib.batch_shards()
        piece = min(length, max(1, min(_PIECE, self._compute.loss_chunk) // share))
        width = -(-length // piece) * piece
        tokens_BT = np.zeros((self._rows, length), np.int32)
        targets_BW = np.zeros((self._rows, width), np.int32)
        lasts_BA = np.zeros((self._rows, _LASTS), np.int32)
        ends_B, counts_B = np.zeros((2, self._rows), np.int32)
        for number, group in enumerate(groups):
            ids = group[0].ids[:-1]
            ends_B[number] = len(ids) - 1
            counts_B[number] = max(row.scored for row in group) - 1
            tokens_BT[number, : len(ids)] = ids
            targets_BW[number, : counts_B[number]] = ids[len(ids) - counts_B[number] :]
            lasts_BA[number, : len(group)] = [row.ids[-1] for row in group]
        pieces = np.int32(-(-int(counts_B.max()) // piece))
        arrays = (tokens_BT, targets_BW, lasts_BA, ends_B - counts_B, ends_B)
        placed = (mesh_lib.place_rows(self._mesh, array) for array in arrays)
        found = token_logprobs(
            self._params,
            *placed,
            pieces,
            config=self._config,
            compute=self._compute,
            piece=piece,
        )
        whole = list(map(mesh_lib.to_host, found))
        return [
            _sums(group, int(counts_B[n]), *(array[n] for array in whole))
            for n, group in enumerate(groups)
        ]


def _sums(
    group: Sequence[Row],
    count: int,
    logprobs_W: np.ndarray,
    greedy_W: np.ndarray,
    last_logprobs_A: np.ndarray,
    last_greedy_A: np.ndarray,
) -> list[tuple[float, bool]]:
    """Of each row of a group: its part of the targets that all share, and its last."""
    found = []
    for number, row in enumerate(group):
        own = slice(count - (row.scored - 1), count)
        terms = [*logprobs_W[own].tolist(), float(last_logprobs_A[number])]
        greedy = bool(greedy_W[own].all() and last_greedy_A[number])
        found.append((math.fsum(terms), greedy))
    return found


def _result(row: Row, logprob: float, greedy: bool) -> Score:
    if not math.isfinite(logprob):
        raise InputError(
            f"a text's log-likelihood is {logprob}; the weights hold NaN or overflow, "
            "so use an earlier checkpoint or a wider dtype"
        )
    return Score(
        logprob=logprob,
        is_greedy=greedy,
        tokens=row.scored,
        truncated=row.truncated,
    )
