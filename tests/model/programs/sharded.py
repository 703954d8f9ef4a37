"""FSDP2 over two processes against one: ``torchrun --nproc_per_node 2 sharded.py``.

Each process takes half of the batch; gradients of the interface and greedy captions must be those of one process.
"""

import torch
import torch.distributed as dist
from tiny import make_batch, make_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from bitllm.model.build import train_interface

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
mesh = init_device_mesh("cpu", (world,))
for layer in model.model.language_model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
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
if rank == 0:
    print(
        f"gradients differ by {worst:.1e} of their largest; captions equal on {int(same)} of {world} processes"
    )
dist.destroy_process_group()
