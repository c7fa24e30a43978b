"""Dense to 50 % sparse: the first half of the chain in `configs/sparse70.py`.

python launch/train.py --config=configs/sparse50.py
    0.66M parameters on the embedded corpus, 2 CPU cores, no network: minutes.
python launch/train.py --config=configs/sparse50.py:smoke
    The same stages in under a minute, for CI; its numbers mean nothing.
python launch/train.py --config=configs/sparse50.py:llama2_7b --config.init=DIR ...
    The paper's 50 % model for 256 accelerators: 45 B tokens (arXiv 2405.03594).
"""

from configs import common


def get_config(arg: str | None = None):
    variants = {None: embedded, "smoke": smoke, "llama2_7b": llama2_7b}
    return common.to_config(common.pick(variants, arg)())


RETRAIN = (common.Retrain(sparsity=0.5, steps=900, peak=2e-3, control_peak=2e-3),)


def embedded():
    return common.embedded("sparse50", *RETRAIN)


def smoke():
    return common.smoke(embedded(), *RETRAIN)


def llama2_7b():
    steps = common.tokens_to_steps(45e9)
    return common.llama2_7b(
        "sparse50",
        common.Retrain(sparsity=0.5, steps=steps, peak=3e-4, control_peak=3e-4),
    )
