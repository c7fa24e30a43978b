"""Rounding of a Hugging Face Llama to integers, alone or in one solve with pruning.

    python launch/prune.py --model=HF_DIR --out=OUT_DIR \
        --config=configs/quantize.py:w8a8 --config.calibration=FILE
        Keeps the zeros that the model has. OUT_DIR is a compressed-tensors directory
        with exact zeros, masks.safetensors, prune_report.md and prune_report.json.
    python launch/prune.py --model=HF_DIR --out=OUT_DIR \
        --config=configs/quantize.py:gptq_int4 --config.calibration=FILE \
        --config.pattern=5:16
        Prunes as well; with unstructured or group:16, --config.sparsity=0.7 says how
        much.

Variants (groups of 128 inputs share a scale, and grids are symmetric, if nothing else
is said):

    w8a8             SmoothQuant 0.8, GPTQ, 8 bits and a scale per output; the inputs
                     are rounded to 8 bits token by token
    w8a8_static      the same with a fixed scale for the inputs of each matrix
    gptq_int4        GPTQ, clipped ranges; also gptq_int3
    gptq_int2        asymmetric, groups of 64
    nearest_int4     round to nearest, which needs no text
    awq_int4         activation-aware scales, then round to nearest
    slim_int4        GPTQ and a low-rank correction in 4 bits (SLiM)
    dense_and_sparse_int4   GPTQ, 0.45 % of the weights kept in 16 bits (SqueezeLLM)

    --config.evaluate=test.txt               loss and perplexity before and after
    --config.quantize.grid.group=32          0 = a scale for a whole row
    --config.quantize.clip=search            or range
    --config.quantize.smooth.alpha=0.9       of the w8a8 variants
    --config.quantize.max_error=0.05         what rounding may add to the relative error
                                             of a matrix that does not stay in floats
    --config.quantize.leave_out="('layers/(0|1|30)/mlp/down/kernel',)"
                                             what stays in floats by rule
    --config.solver=sparsegpt_refit          as in configs/prune.py, as all else is

Time: under a minute on 2 CPU cores for a model of a million parameters, most of it
compilation; a pattern doubles the work of its solver. Killed, the same command goes on
at the first unfinished block. Expected: W8A8 within 0.5 % of the loss; GPTQ below
rounding to nearest at 4 and 3 bits.
"""

from configs import common
from sparse_jax.prune import Awq, LowRank, Outliers, QuantizeConfig, SmoothQuant
from sparse_jax.quant import GridConfig
from sparse_jax.recipe import PruneJob

INT8 = GridConfig(bits=8, group=0)
SMOOTH = SmoothQuant(alpha=0.8)

VARIANTS = {
    "w8a8": QuantizeConfig(grid=INT8, smooth=SMOOTH, activations="dynamic"),
    "w8a8_static": QuantizeConfig(grid=INT8, smooth=SMOOTH, activations="static"),
    "gptq_int4": QuantizeConfig(clip="search"),
    "gptq_int3": QuantizeConfig(grid=GridConfig(bits=3), clip="search"),
    "gptq_int2": QuantizeConfig(
        grid=GridConfig(bits=2, group=64, symmetric=False), clip="search"
    ),
    "nearest_int4": QuantizeConfig(method="nearest"),
    "awq_int4": QuantizeConfig(method="nearest", clip="search", smooth=Awq()),
    "slim_int4": QuantizeConfig(clip="search", low_rank=LowRank(grid=GridConfig())),
    "dense_and_sparse_int4": QuantizeConfig(clip="search", outliers=Outliers()),
}


def get_config(arg: str | None = None):
    variants = {None: VARIANTS["w8a8"], **VARIANTS}
    quantize = common.pick(variants, arg)
    return common.to_config(PruneJob(pattern="found", quantize=quantize))
