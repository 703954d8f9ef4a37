"""The exported folder decodes as the run does, and its card gives no score without its controls."""

import json
import re

import pytest
import torch
import yaml
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitllm import BitLlmForCausalLM
from bitllm import export as exporting
from bitllm.cli import main
from bitllm.data.splits import load_split
from bitllm.data.store import open_store
from bitllm.errors import CheckpointError, ConfigError, OutputError
from bitllm.evaluation.held_out import read_held_out
from bitllm.export import export_run, push_to_hub
from bitllm.model.captioner import Captioner, load_captioner
from bitllm.model.checkpoint.base import load_llm
from bitllm.model.checkpoint.weights import is_ours
from bitllm.report.card import license_of


@pytest.fixture(scope="module")
def exported(demo_folder, tmp_path_factory):
    """The smallest demo's rft and sft, exported."""
    out = tmp_path_factory.mktemp("exported")
    for system in ("rft", "sft"):
        export_run(demo_folder, out / system, system=system)
    return out


@pytest.fixture(scope="module")
def held_out(demo_folder):
    """Test trials of the demo."""
    store = open_store(demo_folder / "store")
    return read_held_out(store, load_split(demo_folder / "split.json"), averaged=True)


def card_of(folder):
    """Header and text of a model card."""
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


@pytest.mark.parametrize("system", ["rft", "sft"])
def test_the_exported_model_decodes_as_the_run_does(exported, demo_folder, held_out, system):
    own = load_captioner(demo_folder / system, load_llm(demo_folder / "llm"))
    model = (
        AutoModelForCausalLM.from_pretrained(exported / system)
        if system == "rft"
        else BitLlmForCausalLM.from_pretrained(exported / system, base_llm=demo_folder / "llm")
    )
    tokenizer = AutoTokenizer.from_pretrained(exported / system)
    assert tokenizer.get_vocab() == own.prompter.tokenizer.get_vocab()
    atlases = json.loads((exported / system / "brain.json").read_text())["atlases"]
    tokens = held_out.brain_tokens(own.encoder, own.atlases)
    torch.testing.assert_close(held_out.brain_tokens(model.model.encoder, atlases), tokens)
    said = Captioner(model, own.prompter).greedy(tokens, max_new_tokens=8)
    assert said == own.greedy(tokens, max_new_tokens=8)


def test_after_rft_it_is_whole_and_otherwise_only_what_was_trained(exported, demo_folder, tmp_path):
    assert any(not is_ours(name) for name in load_file(exported / "rft" / "model.safetensors"))
    assert all(is_ours(name) for name in load_file(exported / "sft" / "model.safetensors"))
    assert export_run(demo_folder / "sft", tmp_path / "whole", whole=True).is_whole
    assert any(not is_ours(name) for name in load_file(tmp_path / "whole" / "model.safetensors"))


def test_the_folder_holds_nothing_of_a_participant(exported, held_out, demo_folder):
    names = {path.name for path in (exported / "rft").iterdir()}
    assert names == {"README.md", "brain.json", "config.json", "generation_config.json", "model.safetensors",
                     "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}  # fmt: skip
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in (exported / "rft").iterdir()
        if path.suffix in (".md", ".json")
    )
    assert str(demo_folder) not in text
    for caption in {caption for references in held_out.references for caption in references}:
        assert caption not in text
    n_voxels = held_out.betas.shape[1]
    shapes = [tuple(one.shape) for one in load_file(exported / "rft" / "model.safetensors").values()]
    assert all(n_voxels not in shape for shape in shapes)


def test_the_card_has_data_split_metrics_and_controls(exported, demo_folder):
    results = json.loads((demo_folder / "results.json").read_text())
    header, text = card_of(exported / "rft")
    assert header["library_name"] == "transformers"
    assert header["license"] == "apache-2.0"
    assert "rft" in header["tags"]
    for said in (
        "Simulated brain.",
        "No person's data",
        results["about"]["split_sha256"],
        results["about"]["references_sha256"],
    ):
        assert said in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    for control in (
        "another image's betas",
        "all betas zero",
        "one constant caption",
        "language model alone",
    ):
        assert any(control in line for line in table), control
    real = next(line for line in table if line.startswith("| **real betas**"))
    assert f"{results['systems']['rft']['averaged']['real']['scores']['CIDEr']['value']:.1f}" in real
    assert not re.search(r"\{[{%]", text)


def test_a_model_that_was_not_evaluated_says_so(easy, tmp_path):
    made = export_run(easy.folder / "sft", tmp_path / "out")
    assert not made.was_evaluated
    header, text = card_of(tmp_path / "out")
    assert "not evaluated" in text
    assert "not known to the exporter" in text
    assert header["license"] == "other"


@pytest.mark.parametrize(
    ("llm", "is_simulated", "found"),
    [
        ("meta-llama/Llama-3.2-3B-Instruct", False, "llama3.2"),
        ("meta-llama/Llama-3.1-8B-Instruct", False, "llama3.1"),
        ("meta-llama/Llama-3.3-70B-Instruct", False, "llama3.3"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", False, "llama3"),
        ("meta-llama/Llama-2-7b-hf", False, "other"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", False, "apache-2.0"),
        ("llm", True, "apache-2.0"),
        ("llm", False, "other"),
        ("someone/else", True, "other"),
    ],
)
def test_the_license_is_that_of_the_base_llm_or_not_known(llm, is_simulated, found):
    assert license_of(llm, is_simulated=is_simulated) == found


def test_an_output_that_is_taken_and_an_unknown_system_are_refused(exported, demo_folder, tmp_path):
    with pytest.raises(OutputError, match="expected an empty or a new folder"):
        export_run(demo_folder, exported / "rft")
    with pytest.raises(CheckpointError, match="expected a system of the run, found `rtf`"):
        export_run(demo_folder, tmp_path / "out", system="rtf")
    with pytest.raises(CheckpointError, match="expected the folder of a run, found none"):
        export_run(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class _Hub:
    """In the place of the hub: keeps what it is asked."""

    asked: list = []  # noqa: RUF012 - one hub for the test

    def create_repo(self, name, **options):
        if name.count("/") > 1:
            raise HFValidationError(name)
        if name == "me/offline":
            raise OSError("no route to host")
        self.asked.append(("create", name, options["private"]))

    def upload_folder(self, *, repo_id, folder_path):
        self.asked.append(("upload", repo_id, folder_path.name))
        return f"https://hub/{repo_id}"


def test_the_hub_is_asked_only_if_named_and_the_repository_is_private(
    monkeypatch, demo_folder, tmp_path, capsys
):
    monkeypatch.setattr(exporting, "HfApi", _Hub)
    main(["export", str(demo_folder), str(tmp_path / "a"), "--json"])
    assert json.loads(capsys.readouterr().out)["system"] == "rft"
    assert _Hub.asked == []
    main(["export", str(demo_folder), str(tmp_path / "b"), "--system", "sft", "--push-to-hub", "me/brain"])
    assert _Hub.asked == [("create", "me/brain", True), ("upload", "me/brain", "b")]
    assert "https://hub/me/brain" in capsys.readouterr().out


def test_a_push_that_cannot_be_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(exporting, "HfApi", _Hub)
    with pytest.raises(ConfigError, match="--license"):
        push_to_hub(tmp_path, "me/brain", license_name="other")
    with pytest.raises(ConfigError, match="expected NAME or OWNER/NAME, found `a/b/c`"):
        push_to_hub(tmp_path, "a/b/c", license_name="mit")
    with pytest.raises(OutputError, match=r"me/offline: .*no route to host"):
        push_to_hub(tmp_path, "me/offline", license_name="mit")
