"""A report as an ablation makes it: methods by patterns by seeds, made-up numbers."""

import math

import numpy as np

DENSE, END = 2_000_000, 2_800_000
COST = {
    "fixed_mask": 0.020,
    "fixed_mask_kd": 0.013,
    "sr_ste": 0.019,
    "dpf": 0.022,
    "gradual_magnitude": 0.024,
    "ast": 0.010,
    "ast_slorb": 0.007,
    "cast": 0.009,
}
"""Gap of a method at 2:4."""
ADAPTIVE = ("sr_ste", "dpf", "ast", "ast_slorb", "cast")
DISTILLED = ("fixed_mask_kd", "ast", "ast_slorb", "cast")
HARDER = {"2of4": 1.0, "u70": 2.2}
QUESTIONS = [
    {"question": "does distillation help?", "with": "fixed_mask_kd"}
    | {"without": "fixed_mask"},
    {"question": "does SLoRB help?", "with": "ast_slorb", "without": "ast"},
    {"question": "do adaptive masks help?", "with": "ast", "without": "fixed_mask_kd"},
    {"question": "is CAST ahead of DPF?", "with": "cast", "without": "absent"},
]


def decay(tokens):
    return 2.4 + 4.5 * math.exp(-tokens / 250_000) + 0.4 * math.exp(-tokens / 2e6)


def row(name, tokens, loss, sparsity, **fields):
    domains = {"code": {"loss": loss}, "prose": {"loss": loss + 0.3}}
    given = {"name": name, "sparsity_pruned": sparsity, "tokens": tokens}
    return given | {"domains": domains} | fields


def history(first, last, seed, gap, every, **kinds):
    """Rows every `every` tokens; the noise is that of the seed's batches."""
    rows = []
    for tokens in range(first + every, last + 1, every):
        noise = 0.08 * np.random.default_rng((tokens, seed)).normal()
        done = (tokens - first) / (last - first)
        loss = (decay(tokens) + noise) * (1 + gap + 0.15 * math.exp(-12 * done))
        found = {"step": tokens // 1000, "tokens": tokens, "loss": loss}
        if kinds.get("distilled"):
            apart = 0.2 * math.exp(-5 * done) + 5 * gap
            found |= {"cross_entropy": loss, "divergence": apart, "loss": loss + apart}
        if kinds.get("adaptive"):
            flips = (0.03 if done < 0.85 else 0) * math.exp(-4 * done) * (1 + 10 * gap)
            share = 1 - math.exp(-3 * done)
            found |= {"flip_rate": flips, "decayed_share": share}
            found["kept_norm"] = 40 + 3 * done + 100 * gap
            found |= {f"flip_rate/layer_{i}": flips * (0.5 + i / 4) for i in range(4)}
        rows.append(found)
    rows.append({"tokens": last, "heldout/code": decay(last) * (1 + gap)})
    return rows


def ablation(seeds=3, every=8_000):
    """The report and its histories."""
    chance = np.random.default_rng(0)
    models = [row("dense", DENSE, decay(DENSE), 0.0)]
    histories = {"dense": history(0, DENSE, 0, 0.0, every)}
    for pattern, factor in HARDER.items():
        sparsity = {"2of4": 0.5, "u70": 0.7}[pattern]
        loss = decay(DENSE) * (1 + 0.3 * factor)
        models.append(row(f"one_shot_{pattern}", DENSE, loss, sparsity))
        for method, cost in COST.items():
            for seed in range(seeds):
                name = f"{method}_{pattern}_seed{seed}"
                gap = factor * cost + 0.0006 * chance.normal()
                loss = decay(END) * (1 + gap) + 0.004 * seed
                bits = 9.0 + 0.4 * (method == "ast_slorb")
                models.append(row(name, END, loss, sparsity, bits_per_weight=bits))
                kinds = {"distilled": method in DISTILLED}
                kinds["adaptive"] = method in ADAPTIVE
                histories[name] = history(DENSE, END, seed, gap, every, **kinds)
    for seed in range(seeds):
        name = f"dense_control_seed{seed}"
        models.append(row(name, END, decay(END) + 0.004 * seed, 0.0))
        histories[name] = history(DENSE, END, seed, 0.0, every)
    report = {"name": "recovery", "models": models, "comparisons": QUESTIONS}
    return report, histories
