"""One-shot pruning of a Hugging Face Llama: no training, one block in memory at a time.

    python launch/prune.py --model=HF_DIR --out=OUT_DIR \
        --config=configs/prune.py:sparsegpt \
        --config.sparsity=0.7 --config.calibration=train.jsonl.gz
        50 % without --config.sparsity. OUT_DIR is a Hugging Face directory with exact
        zeros, masks.safetensors, prune_report.md and prune_report.json.

Variants, from the quickest to the lowest error of a matrix: `:magnitude` (needs no
text), `:wanda`, `:sparsegpt` (also with no name), `:sparsegpt_refit`, `:admm`.

    --config.evaluate=test.txt               loss and perplexity before and after; give
                                             the flag once for every text
    --config.calibration=embedded:prose      text that needs no file
    --config.samples=128 --config.sample_length=2048 --config.seed=0
    --config.pattern=2:4                     or 8:16, group:16, block:16x16
    --config.allocation.kind=owl             or error, output: sparsity spread unevenly
    --config.dtype=bfloat16                  of the stored weights
    --config.spool=DIR                       activations on disk instead of in memory
    --config.mesh.fsdp=8                     all devices of this machine

Where 16 does not divide the inputs of `down`, a rule names another pattern for it; the
first rule that matches a path counts:

    --config.pattern=8:16 --config.rules="(('layers/mlp/down/kernel', '2:4'),
        ('layers/.*/kernel', 'pattern'), ('.*', 'dense'))"

Time: under a minute on 2 CPU cores for a model of a million parameters, most of it
compilation; the work of a layer grows with the cube of its width. Killed, the same
command goes on at the first unfinished block. Expected: at 60 to 80 % a lower loss with
SparseGPT than with magnitude, and with its refit than without.
"""

from configs import common
from sparse_jax.recipe import PruneJob

SOLVERS = ("magnitude", "wanda", "sparsegpt", "sparsegpt_refit", "admm")


def get_config(arg: str | None = None):
    variants = {None: "sparsegpt"} | {solver: solver for solver in SOLVERS}
    return common.to_config(PruneJob(solver=common.pick(variants, arg)))
