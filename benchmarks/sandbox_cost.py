"""What running a program in its sandbox costs, beside a bare interpreter.

python benchmarks/sandbox_cost.py --programs=100
"""

import argparse
import statistics
import subprocess
import sys
import time

from sparse_jax.evaluate.code_tests import check_programs


def bare() -> float:
    """Seconds of an interpreter that starts as the sandbox's does, and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-P", "-s", "-S", "-B", "-c", "pass"], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure both, one program at a time, and print milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=100)
    count = parser.parse_args().programs
    alone = [bare() for _ in range(count)]
    boxed = [o.seconds for o in check_programs(["pass"] * count, workers=1)]
    for name, times in (("interpreter", alone), ("sandboxed program", boxed)):
        cuts = statistics.quantiles(times, n=10)
        middle = 1000 * statistics.median(times)
        print(f"{name}: median {middle:.1f} ms, 90 % below {1000 * cuts[-1]:.1f} ms")


if __name__ == "__main__":
    main()
