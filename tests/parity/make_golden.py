"""Writes golden.npz: logits by transformers, which the suite checks without torch.

    python tests/parity/make_golden.py [shared/data]

Needs torch and transformers (`pip install -e '.[parity]'`). With the folder of real
models, the logits of a few positions of each are written too; without it, those in the
present file are kept.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import parity_cases as cases
import torch
import transformers

REAL_POSITIONS = [0, 1, 50, 199]


def logits(directory: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] in float32 by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def main() -> None:
    """Computes and writes every case."""
    golden = {}
    if cases.GOLDEN.exists():
        with np.load(cases.GOLDEN, allow_pickle=False) as old:
            golden = {name: old[name] for name in old.files if name in cases.REAL}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases.CASES:
            directory = cases.write(case, Path(folder) / case)
            golden[case] = logits(directory, cases.tokens(case))
    for name in cases.REAL if len(sys.argv) > 1 else ():
        real = logits(Path(sys.argv[1]) / name, cases.real_tokens())
        golden[name] = real[:, REAL_POSITIONS]
    golden["real_positions"] = np.array(REAL_POSITIONS)
    golden["versions"] = np.array([torch.__version__, transformers.__version__])
    np.savez_compressed(cases.GOLDEN, **golden)
    print(f"{cases.GOLDEN}: {cases.GOLDEN.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
