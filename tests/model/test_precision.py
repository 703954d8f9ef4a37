import pytest
import torch

from bitllm.model import precision
from bitllm.model.build import build_bit_llm
from bitllm.model.checkpoint.weights import is_ours
from bitllm.model.likelihood import token_log_probs
from bitllm.model.precision import base_dtype, computing, has_fast_bf16
from tiny_model import ENCODER

SETTINGS = {
    "encoder": ENCODER,
    "interface": "cross_attention",
    "adapter_layers": [0, 2],
}


def test_a_named_precision_is_taken_at_its_word():
    assert base_dtype("fp32") is torch.float32
    assert base_dtype("bf16") is torch.bfloat16


@pytest.fixture(autouse=True)
def _measured_anew():
    precision._is_faster_in_bf16.cache_clear()
    yield
    precision._is_faster_in_bf16.cache_clear()


def test_auto_is_measured_once_in_a_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_seconds", lambda dtype: 0.5 if dtype is torch.bfloat16 else 1.0)
    assert base_dtype("auto") is torch.bfloat16
    monkeypatch.setattr(precision, "_seconds", lambda dtype: pytest.fail("measured again"))
    assert base_dtype("auto") is torch.bfloat16


@pytest.mark.parametrize("disturbed", [torch.bfloat16, torch.float32])
def test_a_disturbance_of_some_turns_changes_nothing(monkeypatch, disturbed):
    turns = {torch.bfloat16: iter([0.4] * 8), torch.float32: iter([1.0] * 8)}
    turns[disturbed] = iter([9.0, 8.0, 9.0, 9.0, 7.0, next(turns[disturbed]), 9.0, 9.0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_seconds", lambda dtype: next(turns[dtype]))
    assert base_dtype("auto") is torch.bfloat16


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, torch.bfloat16), (0.9, torch.float32)])
def test_auto_takes_bf16_only_where_it_is_clearly_faster(monkeypatch, ratio, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_seconds", lambda dtype: ratio if dtype is torch.bfloat16 else 1.0)
    assert base_dtype("auto") is expected


def test_auto_asks_a_gpu_and_does_not_measure_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(precision, "_seconds", lambda dtype: pytest.fail("measured"))
    assert has_fast_bf16()


def test_the_measurement_on_this_machine_gives_an_answer():
    assert has_fast_bf16() in (True, False)


def test_only_the_base_llm_is_kept_in_bf16(llm):
    model = build_bit_llm(llm, base_dtype=torch.bfloat16, **SETTINGS)
    for name, parameter in model.named_parameters():
        assert parameter.dtype is (torch.float32 if is_ours(name) else torch.bfloat16), name


def test_mixed_precision_is_on_only_around_a_bf16_llm(llm):
    for dtype in (torch.float32, torch.bfloat16):
        model = build_bit_llm(llm, base_dtype=dtype, **SETTINGS)
        with computing(model):
            assert torch.is_autocast_enabled("cpu") == (dtype is torch.bfloat16)
        assert not torch.is_autocast_enabled("cpu")


def test_log_probs_in_bf16_are_near_those_in_float32_and_train_the_adapters(llm):
    """bfloat16 has 8 bits: a relative error of 2⁻⁸ on each logit, sums of a few, log-probabilities of about 4."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(3)
        model = build_bit_llm(llm, base_dtype=dtype, **SETTINGS).eval()
        adapter = model.model.language_model.layers[0].adapter
        adapter.requires_grad_(True)
        torch.manual_seed(4)
        ids, brain_tokens = torch.randint(3, 50, (2, 8)), torch.randn(2, 5, 12)
        with computing(model):
            memory = model.model.brain_memory(brain_tokens=brain_tokens)
        out = token_log_probs(model, input_ids=ids, labels=ids, brain_memory=memory)
        out.log_probs.sum().backward()
        assert adapter.o_proj.weight.grad.dtype is torch.float32
        assert adapter.o_proj.weight.grad.any()
        found[dtype] = out.log_probs.detach()
    assert found[torch.bfloat16].dtype is torch.float32
    assert torch.allclose(found[torch.bfloat16], found[torch.float32], atol=0.1)
