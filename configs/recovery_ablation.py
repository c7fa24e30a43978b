"""What brings a sparse model back: masks, teachers, decay, low rank, on equal tokens.

Every method of `configs/recovery.py` retrains the same dense parent for the same
batches, with the peak learning rate that was best of three on one seed for it and its
pattern (`:tune`), the dense control's included. Masks are 2:4 and 70 % unstructured;
three seeds draw the order of the data.

    python launch/train.py --config=configs/recovery_ablation.py
        0.66M parameters on the embedded corpus, 2 CPU cores, no network. The parent
        sees ten times the tokens of a retraining. Killed, the same command goes on.
    python launch/train.py --config=configs/recovery_ablation.py:full
        80 %, 90 % and 5:16 as well, for the fixed mask and the three best methods.
    python launch/train.py --config=configs/recovery_ablation.py:tune
        The trials behind the learning rates: three for each method, one seed.
    python launch/train.py --config=configs/recovery_ablation.py:smoke
        All stages for a few steps, two seeds; its numbers mean nothing.
"""

from configs import common, recovery
from sparse_jax.recipe import Recipe

PEAKS = {
    "2of4": {
        "fixed_mask": 5e-4,
        "fixed_mask_kd": 2e-3,
        "sr_ste": 1e-3,
        "dpf": 5e-4,
        "gradual_magnitude": 1e-3,
        "ast": 2.5e-4,
        "cast": 5e-4,
    },
    "u70": {
        "fixed_mask": 1e-3,
        "fixed_mask_kd": 2e-3,
        "sr_ste": 1e-3,
        "dpf": 5e-4,
        "gradual_magnitude": 1e-3,
        "ast": 5e-4,
        "cast": 5e-4,
    },
}
# Not tuned at these: 70 % is the nearest pattern that was.
PEAKS |= {pattern: PEAKS["u70"] for pattern in ("5of16", "u80", "u90")}


def get_config(arg: str | None = None):
    variants = {None: embedded, "full": full, "tune": tune, "smoke": smoke}
    return common.to_config(common.pick(variants, arg)())


def setting(name: str, steps: int = recovery.STEPS) -> recovery.Setting:
    return recovery.Setting(
        base=recovery.embedded(name),
        steps=steps,
        methods=recovery.papers_methods(steps),
        control_peak=1.25e-4,
        peaks=PEAKS,
    )


def embedded() -> Recipe:
    shared = setting("recovery_ablation")
    stages = recovery.compared(shared, ("2of4", "u70"), (0, 1, 2))
    return recovery.recipe(shared, stages, recovery.PAPERS_QUESTIONS)


def full() -> Recipe:
    shared = setting("recovery_ablation_full")
    stages = recovery.compared(shared, ("2of4", "u70"), (0, 1, 2))
    best = ("fixed_mask", "fixed_mask_kd", "ast", "ast_slorb")
    stages |= recovery.compared(shared, ("u80", "u90", "5of16"), (0, 1, 2), best)
    return recovery.recipe(shared, stages, recovery.PAPERS_QUESTIONS)


def tune() -> Recipe:
    shared = setting("recovery_ablation_tune")
    return recovery.recipe(shared, recovery.tuned(shared, ("2of4", "u70")))


def smoke() -> Recipe:
    shared = setting("recovery_ablation", steps=20)
    stages = recovery.compared(shared, ("2of4", "u70"), (0, 1))
    small = recovery.recipe(shared, stages, recovery.PAPERS_QUESTIONS)
    return common.shortened(small)
