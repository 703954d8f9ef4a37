"""FSDP2 over two processes against one: ``torchrun --nproc_per_node 2 sharded.py FOLDER``.

Each process takes half of the batch; gradients of the interface and greedy captions must be those of one process.
Then a larger LLM is loaded from FOLDER, sharded and trained for a step: no process ever holds as much as its weights.
"""

import sys
from pathlib import Path
from threading import Event, Thread

import torch
import torch.distributed as dist
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import LlamaConfig, LlamaForCausalLM

from bitllm.model.build import build_bit_llm, train_interface
from bitllm.model.checkpoint.base import load_llm
from bitllm.toy_models import make_word_tokenizer
from bitllm.training.distributed import shard
from bitllm.training.optimizers import make_optimizers
from tiny_model import ENCODER, make_batch, make_model


def own_mb() -> float:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 2**10


def make_large(folder: Path) -> None:
    """An LLM of some 200 MB in 24 layers."""
    tokenizer = make_word_tokenizer([], wrap=False)
    sizes = {"hidden_size": 400, "intermediate_size": 1200, "num_hidden_layers": 24, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=max(50, len(tokenizer)), pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
batch = make_batch()

alone = make_model()
train_interface(alone)
ids = batch["input_ids"]
alone(**batch, labels=ids).loss.backward()
expected = {name: p.grad for name, p in alone.named_parameters() if p.requires_grad}
captions = alone.generate(**batch, max_new_tokens=6, do_sample=False)

model = make_model()
train_interface(model)
shard(model)
register_fsdp_forward_method(model, "generate")
half = slice(rank * 2, rank * 2 + 2)
mine = {**batch, **{name: batch[name][half] for name in ("input_ids", "betas", "subject_index")}}
model(**mine, labels=mine["input_ids"]).loss.backward()
worst = 0.0
for name, parameter in model.named_parameters():
    if parameter.requires_grad:
        gradient = parameter.grad.full_tensor()
        worst = max(worst, float((gradient - expected[name]).abs().max() / expected[name].abs().max()))
said = model.generate(**mine, max_new_tokens=6, do_sample=False)
same = torch.tensor(float(torch.equal(said, captions[half])))
dist.all_reduce(same)
for one in (alone, model):
    trained = [p for p in one.parameters() if p.requires_grad]
    for optimizer in make_optimizers(one, [{"params": trained}], lr=0.1, matrices="muon"):
        optimizer.step()
moved = 0.0
for parameter, other in zip(model.parameters(), alone.parameters(), strict=True):
    if parameter.requires_grad:
        moved = max(moved, float((parameter.full_tensor() - other).detach().abs().max()))
if rank == 0:
    print(f"weights after a step of Muon and AdamW differ by {moved:.1e}")
    print(
        f"gradients differ by {worst:.1e} of their largest; captions equal on {int(same)} of {world} processes"
    )

large = Path(sys.argv[1])
if rank == 0:
    make_large(large)
dist.barrier()
peak, is_over, before = [0.0], Event(), own_mb()


def watch() -> None:
    """Keep the largest memory that was seen."""
    while not is_over.wait(0.001):
        peak[0] = max(peak[0], own_mb() - before)


watcher = Thread(target=watch)
watcher.start()
base = load_llm(large)
model = build_bit_llm(base.llm, encoder=ENCODER, adapter_layers=[0], prefix_hidden_width=9, brain_token_id=3)
train_interface(model)
shard(model)
model(**batch, labels=ids).loss.backward()
is_over.set()
watcher.join()
whole = sum(parameter.numel() * 4 for parameter in base.llm.parameters()) / 2**20
peaks = torch.tensor(peak[0])
dist.all_reduce(peaks, dist.ReduceOp.MAX)
if rank == 0:
    print(f"own memory: {peaks.item():.0f} of {whole:.0f} MB")
dist.destroy_process_group()
