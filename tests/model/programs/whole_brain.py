"""Extra memory (MB) of the encoder's front end, forward and backward, for two numbers of voxels.

A program of its own, so that nothing else allocates meanwhile.
"""

import threading

import psutil
import torch

from bitllm.model.encoder import BrainEncoder

torch.manual_seed(0)
encoder = BrainEncoder(
    n_queries=1024, rank=128, n_brain_tokens=1, token_width=8, n_labels=(3,), n_blocks=0, n_frequencies=16
)


def pool(n_voxels: int) -> None:
    coords_mm, labels = 50 * torch.randn(n_voxels, 3), torch.ones(n_voxels, 1, dtype=torch.long)
    encoder.train().pool(torch.randn(4, n_voxels), coords_mm, labels).square().sum().backward()


def extra_mb(n_voxels: int) -> float:
    """Largest memory seen while pooling, over what the process held before."""
    process, seen, is_done = psutil.Process(), [], threading.Event()

    def watch() -> None:
        while not is_done.wait(0.002):
            seen.append(process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    pool(n_voxels)
    is_done.set()
    watcher.join()
    return (max(seen) - before) / 1e6


pool(1000)  # what the libraries take for themselves
for n_voxels in (125_000, 250_000):
    print(n_voxels, extra_mb(n_voxels))
