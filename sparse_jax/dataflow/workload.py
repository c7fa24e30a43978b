"""What a model asks of the machine: matrices, passes, arithmetic, bytes, memory.

Arithmetic is that of `sparse_jax.evaluate.training_flops_per_token`: 2 flops per weight
and token in each pass; a causal query sees half of its context. With P pruned weights
of which a fraction k is kept, V D weights in the head and d = N H, a training step of
context S takes per token

    kept   6 P k           + 6 V D + 6 L d S
    dense  4 P k + 2 P     + 6 V D + 6 L d S

flops: weight gradients at kept positions only, or at all of them.
"""

import dataclasses
import functools
import re
from typing import Literal, get_args

from sparse_jax import models, tree
from sparse_jax.io import names
from sparse_jax.models import LlamaConfig
from sparse_jax.types import InputError

Mode = Literal["training", "prefill", "decode"]
WeightGradient = Literal["kept", "dense"]
MODES: tuple[Mode, ...] = get_args(Mode)
WEIGHT_GRADIENTS: tuple[WeightGradient, ...] = get_args(WeightGradient)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """A prunable matrix of every layer.

    Attributes:
      path: leaf path, "layers/attention/q/kernel".
      outputs: rows of W [O, I].
      inputs: its columns.
    """

    path: str
    outputs: int
    inputs: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.outputs * self.inputs

    def stream_shape(self, transposed: bool) -> tuple[int, int]:
        """Rows of the weight stream, and the features that slices cut."""
        shape = self.outputs, self.inputs
        return shape[::-1] if transposed else shape


@functools.lru_cache
def prunable(model: LlamaConfig) -> tuple[Matrix, ...]:
    """The matrices that weights may be missing from, in the order they are computed.

    Example:
      >>> from sparse_jax.models import sizes
      >>> [m.path.split("/")[2] for m in prunable(sizes.get("llama2_7b"))]
      ['q', 'k', 'v', 'o', 'gate', 'up', 'down']
    """
    shapes = tree.leaf_paths(models.abstract_params(model)["layers"])
    order = ("q", "k", "v", "o", "gate", "up", "down")
    found = [
        Matrix(path=f"layers/{path}", outputs=leaf.shape[2], inputs=leaf.shape[1])
        for path, leaf in shapes.items()
        if re.fullmatch(names.LINEAR_KERNELS, f"layers/{path}")
    ]
    return tuple(sorted(found, key=lambda m: order.index(m.path.split("/")[2])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One step of a model: a training step, reading prompts, or writing one token each.

    Attributes:
      model: architecture.
      batch: sequences on one system.
      context: S, tokens of a sequence; when decoding, those that are there already.
      mode: training, prefill or decode.
      weight_gradient: training: at kept positions only, or at all of them.
      recompute: training: count the second forward pass that keeping nothing but the
        inputs of layers asks for, and the weight stream that it needs.
    """

    model: LlamaConfig
    batch: int
    context: int
    mode: Mode = "training"
    weight_gradient: WeightGradient = "kept"
    recompute: bool = False

    def __post_init__(self):
        for name in ("batch", "context"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name} must be at least 1, found {getattr(self, name)}"
                )
        self.model.check_length(self.context)

    @functools.cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """The prunable matrices of one layer."""
        return prunable(self.model)

    @functools.cached_property
    def layer_weights(self) -> int:
        """Weights of the prunable matrices of one layer."""
        return sum(matrix.size for matrix in self.matrices)

    @property
    def training(self) -> bool:
        """Whether there is a backward pass."""
        return self.mode == "training"

    @property
    def tokens(self) -> int:
        """Tokens that meet every weight in one step."""
        return self.batch * (1 if self.mode == "decode" else self.context)

    @property
    def head_tokens(self) -> int:
        """Tokens that the output head is computed for: a prompt needs its last."""
        return self.tokens if self.training else self.batch

    @property
    def width(self) -> int:
        """N H, the width of all query heads."""
        return self.model.n_heads * self.model.head_width

    @property
    def key_width(self) -> int:
        """K H, the width of all keys."""
        return self.model.kv_heads * self.model.head_width

    @property
    def seen(self) -> float:
        """Keys that a query meets, on average."""
        return self.context / (1 if self.mode == "decode" else 2)

    @property
    def attention_flops(self) -> float:
        """Of scores and contexts in one layer, forward."""
        return 4 * self.seen * self.width * self.tokens

    @property
    def elementwise_operations(self) -> float:
        """Of norms, rotary embedding, softmax, SiLU and sums in one layer, forward.

        Per token 3 for each value of the two norms, 3 for each of queries and keys, 4
        for each score, 5 for each neuron, 1 for each value of the two sums.
        """
        model = self.model
        per_token = (
            8 * model.d_model
            + 3 * (self.width + self.key_width)
            + 4 * model.n_heads * self.seen
            + 5 * model.d_ff
        )
        return per_token * self.tokens

    def flops(self, kept: float = 1.0) -> float:
        """Arithmetic of the whole step, a fraction `kept` of the matrices' weights."""
        linear = 2 * self.layer_weights * self.tokens * self.model.n_layers
        return linear * self._passes(kept) + self.dense_flops

    def matrix_flops(self, kept: float = 1.0) -> float:
        """Arithmetic of the prunable matrices alone."""
        linear = 2 * self.layer_weights * self.tokens * self.model.n_layers
        return linear * self._passes(kept)

    @property
    def dense_flops(self) -> float:
        """Arithmetic of attention and head, which sparsity leaves as it is."""
        head = 2 * self.model.d_model * self.model.vocab_size * self.head_tokens
        attention = self.attention_flops * self.model.n_layers
        if not self.training:
            return head + attention
        return 3 * head + (4 if self.recompute else 3) * attention

    def _passes(self, kept: float) -> float:
        """Passes over the matrices, each in dense ones."""
        if not self.training:
            return kept
        gradient = kept if self.weight_gradient == "kept" else 1.0
        return (3 if self.recompute else 2) * kept + gradient

    def ideal_speedup(self, kept: float) -> float:
        """Speed-up of the step on a machine without any overhead: Amdahl's law.

        Example:
          >>> from sparse_jax.models import sizes
          >>> model = sizes.get("llama2_7b")
          >>> step = Workload(model=model, batch=1, context=2048)
          >>> round(step.ideal_speedup(0.3), 2)
          2.94
        """
        return self.flops() / self.flops(kept)

    def ideal_matrix_speedup(self, kept: float) -> float:
        """Speed-up of the matrices alone: 1 / kept, less with dense gradients."""
        return self._passes(1.0) / self._passes(kept)

    @property
    def resident_values(self) -> int:
        """Values that the machine holds at the fullest moment of the step.

        Training: the inputs of all layers, and the values of the widest layer with
        their gradients. Prefill: the values of the widest layer, keys and values of
        all. Decode: the same, keys and values of the whole context. The head's logits
        exist for the tokens that it is computed for, gradients in their place.
        """
        model = self.model
        attention = model.d_model + 2 * self.width + 2 * self.key_width
        mlp = model.d_model + 3 * model.d_ff
        head = model.vocab_size * self.head_tokens + model.d_model * self.tokens
        if self.training:
            layer = 2 * max(attention, mlp) * self.tokens
            return model.n_layers * model.d_model * self.tokens + max(layer, head)
        cache = 2 * model.n_layers * self.key_width * self.context * self.batch
        return cache + max((model.d_model + max(attention, mlp)) * self.tokens, head)
