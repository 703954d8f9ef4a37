"""The compiled forward against the plain one: ``python compiled.py BACKEND INTERFACE``.

A program of its own, since a compiler cannot trace the shape checks that the tests put into every function.
"""

import sys

import torch

from tiny_model import make_batch, make_model

backend, interface = sys.argv[1:]  # prefix_mlp differs from prefix before the LLM
model, batch = make_model(interface), make_batch(interface)
ids = batch.pop("input_ids")
with torch.no_grad():
    memory = model.model.brain_memory(**batch)
    plain = model(input_ids=ids, brain_memory=memory, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    found = compiled(input_ids=ids, brain_memory=memory, use_cache=False).logits
print("logits", float((plain - found).abs().max() / plain.abs().max()))
torch._dynamo.reset()
model.requires_grad_(False).model.interface.requires_grad_(True)
gradients = []
# the hidden states are normalized: their sum of squares would be constant, and its gradient rounding alone
direction = torch.randn(*plain.shape[:2], model.config.get_text_config().hidden_size)
for compiles in (False, True):
    if compiles:
        model.model.language_model.compile_layers(backend=backend)
    memory = model.model.brain_memory(**batch)
    hidden = model.model(input_ids=ids, brain_memory=memory, use_cache=False).last_hidden_state
    gradients.append(
        torch.autograd.grad((hidden * direction).sum(), model.model.interface.projection.parameters())
    )
worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*gradients, strict=True))
print("gradients", worst)
