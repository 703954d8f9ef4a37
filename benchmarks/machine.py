"""Peak rates of the machine, and paired timing, for the other benchmarks.

python benchmarks/machine.py
"""

import statistics
import threading
import time
from collections.abc import Callable

import psutil
import torch

SIDE, REPEATS = 2048, 5


def matrix_gflops(dtype: torch.dtype) -> float:
    """Best rate of a square matrix product, in GFLOP/s."""
    a = torch.randn(SIDE, SIDE).to(dtype)
    return 2e-9 * SIDE**3 / min(seconds(lambda: a @ a) for _ in range(REPEATS))


def copy_gb_per_s() -> float:
    """Best rate of a copy in memory, bytes read and written, in GB/s."""
    a = torch.ones(64_000_000)
    b = torch.empty_like(a)
    return 2 * 4e-9 * len(a) / min(seconds(lambda: b.copy_(a)) for _ in range(REPEATS))


def print_ceilings() -> None:
    """Print both, with the number of threads."""
    rates = ", ".join(
        f"{str(dtype).removeprefix('torch.')} {matrix_gflops(dtype):.0f} GFLOP/s"
        for dtype in (torch.float32, torch.bfloat16)
    )
    print(
        f"machine: {torch.get_num_threads()} threads; matrix product {rates}; copy {copy_gb_per_s():.1f} GB/s"
    )


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratio_of_medians(ours: Callable[[], object], theirs: Callable[[], object], *, repeats: int) -> dict:
    """Time both in turn, pair by pair; medians, and how many times as long theirs takes."""
    ours()
    theirs()  # both warm
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    median = [statistics.median(pair[side] for pair in pairs) for side in (0, 1)]
    ratios = sorted(b / a for a, b in pairs)
    return {
        "ours_s": median[0],
        "theirs_s": median[1],
        "ratio": statistics.median(ratios),
        "ratio_range": (ratios[0], ratios[-1]),
    }


def extra_memory_mb(run: Callable[[], object]) -> float:
    """Largest memory seen while ``run`` runs, over what the process held before."""
    process, seen, is_done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not is_done.wait(0.002):
            seen.append(process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    is_done.set()
    watcher.join()
    return (max(seen) - before) / 1e6


if __name__ == "__main__":
    print_ceilings()
