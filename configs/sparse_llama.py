"""The main paper's chain (arXiv 2405.03594) as one recipe, from dense to packed W8A8.

    python launch/train.py --config=configs/sparse_llama.py
        Pretrain, SparseGPT 50 % and train back, 70 % and train back, fine-tune with
        SquareHead, W8A8, pack, decode: 0.66M parameters on the embedded corpus, 2 CPU
        cores, no network. The dense control goes the same way beside it, and is the
        teacher of the fine-tuning.
    python launch/train.py --config=configs/sparse_llama.py:smoke
        The same stages for a few steps, for CI; its numbers mean nothing.
    python launch/train.py --config=configs/sparse_llama.py:llama2_7b \
        --config.pretraining.init=DIR --config.task=evol_codealpaca --config.data=DIR \
        --config.pretraining.data.sources.web.path=... \
        --config.pretraining.data.sources.python.path=...
        The paper's run for 256 accelerators; packing and asking tasks follow in a
        single process (launch/export.py, launch/evaluate.py).

    --config.task=gsm8k --config.data=DIR     another task of `data.tasks`
    --config.tasks="('functions','piqa')" --config.data_dir=DIR
                                              what every model is asked

The default task is made from the embedded corpus: write the body of a library function
from its signature and summary (`sparse_jax.data.functions`); what is asked is which of
four bodies belongs to a signature, a quarter by chance. The report has loss and score
after every step, size, and decoding speed on 0.5B random weights with the same zeros,
beside the paper's 3x and 8.6x.
"""

import dataclasses

from configs import common, sparse70
from sparse_jax.evaluate import HarnessConfig
from sparse_jax.prune import QuantizeConfig, SmoothQuant
from sparse_jax.quant import GridConfig
from sparse_jax.recipe import Finetune, SparseLlama

# SmoothQuant's alpha and GPTQ's rounding are those of the released W8A8 recipes.
W8A8 = QuantizeConfig(
    grid=GridConfig(bits=8, group=0),
    smooth=SmoothQuant(alpha=0.8),
    activations="dynamic",
)


def get_config(arg: str | None = None):
    variants = {None: embedded, "smoke": smoke, "llama2_7b": llama2_7b}
    return common.to_config(common.pick(variants, arg)())


def embedded() -> SparseLlama:
    pretraining = common.embedded("pretraining", *sparse70.RETRAIN)
    return SparseLlama(
        name="sparse_llama",
        pretraining=pretraining,
        finetune=Finetune(
            steps=290,  # 297k tokens
            batch_size=4,
            seq_len=256,
            peak=4e-3,
            warmup_steps=20,
            final_ratio=0.0,
        ),
        control_peak=2e-3,
        quantize=W8A8,
    )


def smoke() -> SparseLlama:
    whole = embedded()
    pretraining = common.smoke(whole.pretraining, *sparse70.RETRAIN)
    return dataclasses.replace(
        whole,
        name="sparse_llama_smoke",
        pretraining=pretraining,
        finetune=dataclasses.replace(whole.finetune, steps=21),
        harness=HarnessConfig(limit=8),
        decode_size="tiny",
    )


def llama2_7b() -> SparseLlama:
    whole = common.llama2_7b("pretraining", *sparse70.paper_retrain(peak=3e-4))
    return SparseLlama(
        name="sparse_llama_llama2_7b",
        pretraining=whole,
        task="evol_codealpaca",
        too_long="truncate",
        finetune=Finetune(
            steps=3_500,
            batch_size=256,
            seq_len=1024,
            peak=5e-4,
            warmup_steps=20,
            final_ratio=0.0,
        ),
        control_peak=1e-4,
        quantize=W8A8,
        tasks=(),
        pack=False,
    )
