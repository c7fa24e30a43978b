"""A stored matrix with what an adapter adds to it, read as one."""

import dataclasses

import numpy as np
from jaxtyping import Float32

from sparse_jax.io.safetensors_file import Entry


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergedEntry(Entry):
    """A matrix whose rows are read as those of W + S X + D, in float32.

    Attributes:
      weights: where W lies.
      s: where S lies; None without low-rank factors.
      x: where X lies; None = the indicator of groups.
      index: where the places of D lie; None without outliers.
      value: where the entries of D lie.
    """

    weights: Entry
    s: Entry | None
    x: Entry | None
    index: Entry | None
    value: Entry | None

    @classmethod
    def of(
        cls,
        weights: Entry,
        s: Entry | None,
        x: Entry | None,
        index: Entry | None,
        value: Entry | None,
    ) -> "MergedEntry":
        """The merged matrix, under the name of W."""
        fields = {f.name: getattr(weights, f.name) for f in dataclasses.fields(Entry)}
        fields |= {"dtype": "F32", "weights": weights}
        return cls(**fields, s=s, x=x, index=index, value=value)

    def rows(self, start: int, stop: int) -> Float32[np.ndarray, "rows in"]:
        """The rows [start, stop); raises as `panels`."""
        w_OI = self.weights.rows(start, stop).astype(np.float32)
        if self.s is not None:
            s_OR = self.s.rows(start, stop).astype(np.float32)
            if self.x is not None:
                w_OI = w_OI + s_OR @ self.x.read().astype(np.float32)
            else:
                w_OI = w_OI + np.repeat(s_OR, self.shape[1] // s_OR.shape[1], axis=1)
        if self.index is not None and self.value is not None:
            places = self.index.read().astype(np.int64)
            edges = np.array([start, stop]) * self.shape[1]
            first, last = np.searchsorted(places, edges).tolist()
            values = self.value.rows(first, last).astype(np.float32)
            w_OI.reshape(-1)[places[first:last] - edges[0]] += values
        return w_OI

    def take(self, ids: np.ndarray) -> Float32[np.ndarray, "rows in"]:
        """The rows at increasing `ids`; raises as `panels`."""
        return np.concatenate([self.rows(i, i + 1) for i in ids.tolist()])

    def read(self) -> Float32[np.ndarray, "out in"]:
        """The whole matrix; raises as `panels`."""
        return self.rows(0, self.shape[0])
