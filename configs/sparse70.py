"""Dense to 70 % sparse, after "Enabling High-Sparsity Foundational Llama Models".

Dense pretraining, SparseGPT to 50 %, sparse pretraining, SparseGPT to 70 % (masks
nested), sparse pretraining (arXiv 2405.03594); beside it a dense control that sees the
same batches with the same schedules, and one-shot pruning by three solvers.

    python launch/train.py --config=configs/sparse70.py
        0.66M parameters on the embedded corpus, 2 CPU cores, no network: 2.5 minutes.
        Gap to the dense control with Python 3.11: 0.52 % on code, 0.55 % on prose.
    python launch/train.py --config=configs/sparse70.py:smoke
        The same stages in under a minute, for CI; its numbers mean nothing.
    python launch/train.py --config=configs/sparse70.py:llama2_7b \
        --config.init=DIR --config.data.sources.web.path=... \
        --config.data.sources.python.path=...
        The paper's run for 256 accelerators: 45 B tokens at 50 %, 100 B more at 70 %.
    python launch/plan.py --config=configs/sparse70.py:llama2_70b --topology=v5p:8x8x8
        The same recipe for Llama-2-70B on 512 chips, planned before it is paid for.

`--config.stages.small_dense.enabled=True` adds a dense model with as many parameters as
the 70 % sparse one has non-zeros, trained on as many tokens.
"""

from configs import common


def get_config(arg: str | None = None):
    variants = {None: embedded, "smoke": smoke}
    variants |= {"llama2_7b": llama2_7b, "llama2_70b": llama2_70b}
    return common.to_config(common.pick(variants, arg)())


RETRAIN = (
    common.Retrain(sparsity=0.5, steps=400, peak=2e-3, control_peak=2e-3),
    common.Retrain(sparsity=0.7, steps=500, peak=2e-3, control_peak=2e-3),
)


def embedded():
    recipe = common.embedded("sparse70", *RETRAIN)
    # 381,408 parameters; the 70 % sparse model keeps 383,206 of its 664,192.
    return common.with_small_dense(recipe, d_model=96, d_ff=192)


def smoke():
    return common.smoke(embedded(), *RETRAIN)


def llama2_7b():
    return common.llama2_7b("sparse70", *paper_retrain(peak=3e-4))


def llama2_70b():
    # Llama 2's own peak for this size; the paper stops at 7B.
    return common.llama2_70b("sparse70", *paper_retrain(peak=1.5e-4))


def paper_retrain(peak: float):
    rates = {"peak": peak, "control_peak": peak}
    return (
        common.Retrain(sparsity=0.5, steps=common.tokens_to_steps(45e9), **rates),
        common.Retrain(sparsity=0.7, steps=common.tokens_to_steps(100e9), **rates),
    )
