"""BIT-LLM against the plain Llama, and every way of decoding against the plainest."""

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from bitllm.errors import ConfigError
from bitllm.model import likelihood
from bitllm.model.build import build_bit_llm, freeze, n_trainable, train_interface
from bitllm.model.checkpoint.weights import is_ours
from bitllm.model.configuration import BitLlmConfig
from bitllm.model.interface import INTERFACES, matched_prefix_width
from bitllm.model.likelihood import token_log_probs
from bitllm.model.modeling import BitLlmForCausalLM
from tiny_model import ENCODER

GREEDY = {"max_new_tokens": 8, "do_sample": False}


@pytest.mark.parametrize("gate_start", [0.0, 1.0])
def test_the_untrained_model_is_the_plain_llama_bit_for_bit(llm: LlamaForCausalLM, gate_start: float) -> None:
    model = build_bit_llm(llm, encoder=ENCODER, adapter_layers=[0, 2], gate_start=gate_start).eval()
    ids = torch.randint(3, 50, (3, 7))
    with torch.no_grad():
        assert torch.equal(llm(ids).logits, model(input_ids=ids, brain_tokens=torch.randn(3, 5, 12)).logits)


def test_the_base_state_dict_is_unchanged(llm: LlamaForCausalLM, open_model: BitLlmForCausalLM) -> None:
    ours = open_model.model.language_model.state_dict()
    base = llm.model.state_dict()
    assert {name for name in ours if ".adapter." not in name} == set(base)
    assert all(torch.equal(ours[name], tensor) for name, tensor in base.items() if "embed" not in name)


@pytest.mark.parametrize("more", [{}, {"cache_implementation": "static"}, {"num_beams": 3}])
def test_cached_decoding_equals_uncached(
    open_model: BitLlmForCausalLM, brain: dict[str, Any], more: dict
) -> None:
    ids = torch.randint(3, 50, (3, 6), generator=torch.Generator().manual_seed(5))
    beams = {key: value for key, value in more.items() if key == "num_beams"}
    plain = open_model.generate(input_ids=ids, **brain, **GREEDY, **beams, use_cache=False)
    assert torch.equal(plain, open_model.generate(input_ids=ids, **brain, **GREEDY, **more))


def test_left_padding_changes_no_caption(open_model: BitLlmForCausalLM, brain: dict[str, Any]) -> None:
    ids = torch.randint(3, 50, (3, 6), generator=torch.Generator().manual_seed(5))
    plain = open_model.generate(input_ids=ids, **brain, **GREEDY)
    padded = torch.cat([torch.zeros(3, 2, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(3, 2, dtype=torch.long), torch.ones_like(ids)], dim=1)
    out = open_model.generate(input_ids=padded, attention_mask=mask, **brain, **GREEDY)
    assert torch.equal(plain[:, 6:], out[:, 8:])


def test_the_caption_depends_on_the_brain_and_on_its_own_row_only(
    open_model: BitLlmForCausalLM, brain: dict[str, Any]
) -> None:
    ids = torch.randint(3, 50, (1, 6), generator=torch.Generator().manual_seed(5)).repeat(3, 1)
    out = open_model(input_ids=ids, **brain).logits
    assert not torch.allclose(out[0], out[1]) and not torch.allclose(out[0], out[2])
    swapped = dict(brain, betas=brain["betas"][[2, 1, 0]])
    assert torch.allclose(open_model(input_ids=ids, **swapped).logits[0], out[2], atol=1e-5)


def test_the_encoder_runs_once_per_generate(
    open_model: BitLlmForCausalLM, brain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    inner = open_model.model.encoder.tokens
    monkeypatch.setattr(
        open_model.model.encoder, "tokens", lambda pooled: (calls.append(len(pooled)), inner(pooled))[1]
    )
    open_model.generate(
        input_ids=torch.full((3, 4), 7), **brain, do_sample=True, num_return_sequences=4, max_new_tokens=5
    )
    assert calls == [3]


@pytest.mark.parametrize("interface", ["prefix", "prefix_mlp"])
def test_a_prefix_replaces_the_placeholders_and_decodes_with_and_without_cache(
    llm: LlamaForCausalLM, brain: dict[str, Any], interface: str
) -> None:
    torch.manual_seed(3)
    model = build_bit_llm(
        llm, encoder=ENCODER, interface=interface, prefix_hidden_width=9, brain_token_id=3
    ).eval()
    ids = torch.cat([torch.full((3, 5), 3), torch.full((3, 4), 8)], dim=1)
    real = model(input_ids=ids, **brain).logits
    zero = model(input_ids=ids, **dict(brain, betas=torch.zeros(3, 30))).logits
    assert not torch.allclose(real[:, -1], zero[:, -1])
    assert torch.equal(
        model.generate(input_ids=ids, **brain, **GREEDY),
        model.generate(input_ids=ids, **brain, **GREEDY, use_cache=False),
    )
    with pytest.raises(ConfigError, match=r"expected 5 placeholder tokens \(id 3\) in each, found \[4\]"):
        model(input_ids=ids[:, 1:], **brain)
    with pytest.raises(ConfigError, match=r"expected 5 placeholder tokens \(id 3\) in each, found \[0\]"):
        model(input_ids=ids[:, 5:], **brain)  # else the brain would be passed over without a word


@pytest.mark.parametrize("interface", INTERFACES)
def test_only_the_interface_learns(llm: LlamaForCausalLM, interface: str) -> None:
    model = build_bit_llm(
        llm, encoder=ENCODER, interface=interface, adapter_layers=[0, 2], prefix_hidden_width=9
    )
    assert n_trainable(model) == 0
    train_interface(model)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning and all(is_ours(name) and "encoder" not in name for name in learning)
    freeze(model)
    assert n_trainable(model) == 0


def test_the_parameter_table_of_the_poster_follows_from_the_published_sizes() -> None:
    """3.15M, 100.67M and 103.82M: counted by hand from Llama-3.2-3B's sizes, on modules without memory."""
    from transformers import LlamaConfig

    from bitllm.model.adapter import CrossAttentionAdapter
    from bitllm.model.interface import BrainInterface

    config = LlamaConfig(
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
    )

    def count(*modules: torch.nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    with torch.device("meta"):
        made = {
            name: BrainInterface(
                config, interface=name, token_width=1024, n_adapters=4, prefix_hidden_width=24576
            )
            for name in INTERFACES
        }
        adapters = [CrossAttentionAdapter(config, gate_start=1.0) for _ in range(4)]
    assert count(made["prefix"]) == 3_148_800
    assert count(made["prefix_mlp"]) == 100_666_368
    assert count(made["cross_attention"], *adapters) == 103_824_388
    assert abs(matched_prefix_width(config, token_width=1024, n_adapters=4) - 24576) < 1024


def test_token_log_probs_equal_a_softmax_written_out(
    open_model: BitLlmForCausalLM, brain: dict[str, Any]
) -> None:
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(4))
    labels = ids.clone()
    labels[:, :3], labels[1, 5:] = -100, -100
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    memory = open_model.model.brain_memory(**brain)
    found = token_log_probs(open_model, input_ids=ids, labels=labels, brain_memory=memory)
    logits = open_model(input_ids=ids, attention_mask=mask, **brain).logits.log_softmax(-1)
    for row in range(3):
        due = [t for t in range(1, 7) if labels[row, t] != -100]
        expected = torch.stack([logits[row, t - 1, labels[row, t]] for t in due])
        assert torch.allclose(found.log_probs[row, found.label_mask[row]], expected, atol=1e-5)
    assert found.label_mask.sum(1).tolist() == [4, 2, 4]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_many_labels_in_parts_have_the_values_and_gradients_of_all_at_once(
    open_model: BitLlmForCausalLM,
    brain: dict[str, Any],
    temperature: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts of two positions; logits of more than two rows would be an error."""
    train_interface(open_model, with_encoder=True)
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(4))
    heights = []
    handle = open_model.lm_head.register_forward_hook(lambda _, given, __: heights.append(len(given[0])))
    found = []
    for at_once in (likelihood._LOGITS_AT_ONCE, 2 * open_model.config.llama.vocab_size + 1):
        monkeypatch.setattr(likelihood, "_LOGITS_AT_ONCE", at_once)
        open_model.zero_grad()
        memory = open_model.model.brain_memory(**brain)
        out = token_log_probs(
            open_model, input_ids=ids, labels=ids, brain_memory=memory, temperature=temperature
        )
        (out.log_probs**2).sum().backward()
        gradients = [p.grad.clone() for p in open_model.parameters() if p.grad is not None]
        found.append([out.log_probs.detach(), *gradients])
    handle.remove()
    assert heights == [18, *[2] * 9, *[2] * 9]  # all at once, then in parts, and each part again backward
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 5e-4 * one.norm()  # some gradients cancel to a ten-thousandth


def test_adapter_gradients_reach_the_encoder(open_model: BitLlmForCausalLM, brain: dict[str, Any]) -> None:
    train_interface(open_model, with_encoder=True)
    ids = torch.randint(3, 50, (3, 7))
    open_model(input_ids=ids, labels=ids, **brain).loss.backward()
    for name, parameter in open_model.named_parameters():
        assert (parameter.grad is not None) == is_ours(name), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"interface": "telepathy"},
            "interface: expected one of cross_attention, prefix, prefix_mlp, found 'telepathy'",
        ),
        ({"adapter_layers": [0, 9]}, "expected different layers from 0 to 3"),
        ({"adapter_layers": [1, 1]}, "expected different layers from 0 to 3"),
    ],
)
def test_a_wrong_setting_is_named(llm: LlamaForCausalLM, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BitLlmConfig(text_config=llm.config, encoder=ENCODER, **settings)


def test_gradient_checkpointing_changes_no_gradient(
    open_model: BitLlmForCausalLM, brain: dict[str, Any]
) -> None:
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(6))
    found = []
    for is_on in (False, True):
        train_interface(open_model, with_encoder=True)
        open_model.zero_grad()
        open_model.train()
        for module in open_model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        if is_on:
            open_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert open_model.model.language_model.layers[0].gradient_checkpointing
        open_model(input_ids=ids, labels=ids, **brain).loss.backward()
        found.append([p.grad.clone() for p in open_model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_head_never_copies_its_weights_for_each_row(open_model: BitLlmForCausalLM) -> None:
    """What made a decode of 8 prompts at the poster's size take 6 GB for nothing: one product per row."""
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(6))
    with torch.no_grad(), torch.profiler.profile() as profile:
        open_model(input_ids=ids, logits_to_keep=1)
    assert "aten::bmm" not in {event.key for event in profile.key_averages()}
