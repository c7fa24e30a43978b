"""Makes `parity_cases` importable, as it is for the script beside it."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

collect_ignore = ["make_golden.py"]  # a script that imports torch
