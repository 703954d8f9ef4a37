"""The adapter against its equation written out, value by value and gradient by gradient."""

import torch
from transformers import LlamaConfig

from bitllm.model.adapter import CrossAttentionAdapter, MemoryProjector

CONFIG = LlamaConfig(hidden_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=2)


def written_out(adapter, projector, hidden, projected):
    """h + tanh(gate) · W_o · Attention(W_q · RMSNorm(h), W_k · m, W_v · m), one head and one word at a time."""
    rows = []
    for h, m in zip(hidden, projected, strict=True):
        words = []
        for word in h:
            query = adapter.q_proj.weight @ adapter.norm(word)
            read = []
            for head in range(4):
                own, shared = slice(2 * head, 2 * head + 2), slice(2 * (head // 2), 2 * (head // 2) + 2)
                keys = torch.stack([(projector.k_proj[0].weight @ token)[shared] for token in m])
                values = torch.stack([(projector.v_proj[0].weight @ token)[shared] for token in m])
                scores = torch.stack([query[own] @ key / 2**0.5 for key in keys]).exp()
                read.append(sum(s / scores.sum() * v for s, v in zip(scores, values, strict=True)))
            words.append(word + torch.tanh(adapter.gate) * (adapter.o_proj.weight @ torch.cat(read)))
        rows.append(torch.stack(words))
    return torch.stack(rows)


def test_output_and_gradients_equal_the_equation_written_out() -> None:
    """float64, so 1e-10 is rounding; but transformers' norm computes in float32, and so do gradients through it."""
    torch.manual_seed(0)
    adapter = CrossAttentionAdapter(CONFIG, gate_start=0.7).double()
    projector = MemoryProjector(CONFIG, n_adapters=1).double()
    adapter.reset_parameters()
    for parameter in (adapter.o_proj.weight, adapter.q_proj.weight, adapter.norm.weight):
        torch.nn.init.normal_(parameter)
    found = []
    for is_naive in (False, True):
        generator = torch.Generator().manual_seed(1)
        hidden = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64).requires_grad_()
        projected = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64).requires_grad_()
        adapter.zero_grad()
        projector.zero_grad()
        if is_naive:
            out = written_out(adapter, projector, hidden, projected)
        else:
            out = adapter(hidden, projector(projected)[:, 0])
        (out * torch.linspace(0.5, 1.5, out.numel()).double().view_as(out)).square().sum().backward()
        learnt = [*adapter.named_parameters(), *projector.named_parameters()]
        grads = {name: parameter.grad.clone() for name, parameter in learnt}
        found.append({**grads, "out": out.detach(), "hidden": hidden.grad, "memory": projected.grad})
    assert len(found[0]) == 4 + 2 + 3
    for name, expected in found[1].items():
        tolerance = 1e-5 if name in ("norm.weight", "hidden") else 1e-10
        assert torch.allclose(
            found[0][name], expected, rtol=0, atol=tolerance * float(expected.abs().max())
        ), name


def test_the_norm_is_the_root_mean_square_written_out() -> None:
    adapter = CrossAttentionAdapter(CONFIG, gate_start=0.7)
    torch.nn.init.normal_(adapter.norm.weight)
    word = torch.randn(8)
    expected = word / (word.square().mean() + CONFIG.rms_norm_eps).sqrt() * adapter.norm.weight
    assert torch.allclose(adapter.norm(word), expected, atol=1e-6)
