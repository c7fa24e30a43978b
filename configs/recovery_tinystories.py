"""The comparison of `recovery_ablation.py` on a model that others trained, in 2:4.

    python launch/train.py --config=configs/recovery_tinystories.py \
        --config.init=DIR --config.data.sources.stories.path=FILE
        A small Llama of TinyStories, such as BabyLlama with 0.94M parameters, as a
        Hugging Face directory; stories between `<|endoftext|>` in a text file, of which
        a tenth is held out. 0.2M tokens for every retraining, three seeds.
    python launch/train.py --config=configs/recovery_tinystories.py:tune ...
        The trials behind the learning rates: three for each method, one seed.
"""

import dataclasses

from configs import common, recovery
from sparse_jax.data import DataConfig, SourceConfig
from sparse_jax.recipe import Recipe

STEPS = 200

PEAKS = {
    "2of4": {
        "fixed_mask": 2.5e-4,
        "fixed_mask_kd": 2.5e-4,
        "sr_ste": 2.5e-4,
        "dpf": 1.25e-4,
        "gradual_magnitude": 5e-4,
        "ast": 6.25e-5,
        "cast": 1.25e-4,
    },
}


def get_config(arg: str | None = None):
    return common.to_config(common.pick({None: compared, "tune": tune}, arg)())


def setting(name: str) -> recovery.Setting:
    base = common.embedded(name)
    stories = SourceConfig(
        path="data/tinystories/*.txt", separator="<|endoftext|>", heldout_fraction=0.1
    )
    base = dataclasses.replace(
        base,
        init="data/babyllama",
        data=DataConfig(sources={"stories": stories}, heldout_limit=120_000),
        train=dataclasses.replace(base.train, batch_size=4, seq_len=256),
    )
    return recovery.Setting(
        base=base,
        steps=STEPS,
        methods=recovery.papers_methods(STEPS),
        control_peak=1.5e-5,
        peaks=PEAKS,
    )


def compared() -> Recipe:
    shared = setting("recovery_tinystories")
    stages = recovery.compared(shared, PEAKS, (0, 1, 2))
    return recovery.recipe(shared, stages, recovery.PAPERS_QUESTIONS)


def tune() -> Recipe:
    shared = setting("recovery_tinystories_tune")
    return recovery.recipe(shared, recovery.tuned(shared, PEAKS))
