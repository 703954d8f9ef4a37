"""What is read from the folder of a run, and the command that writes the pages."""

import json
import shutil
import sys

import pytest

from bitllm.cli import main
from bitllm.errors import DataError
from bitllm.evaluation.results import to_json
from bitllm.report.run import read_curves, read_run


@pytest.fixture(scope="module")
def moved(demo_folder, tmp_path_factory):
    """The demo's folder without its store."""
    copy = tmp_path_factory.mktemp("moved") / "run"
    left_out = shutil.ignore_patterns("nsd", "llm", "clip", "store", "rft", "sft", "prefix*", "no_align")
    shutil.copytree(demo_folder, copy, ignore=left_out)
    return copy


@pytest.fixture(scope="module")
def demo(demo_folder):
    """The demo as the report reads it."""
    return read_run(demo_folder)


def test_a_demo_has_everything(demo):
    assert demo.results.about.subject == "subj08"
    assert {"align", "sft", "rft", "prefix"} <= set(demo.curves)
    assert {item.group for item in demo.gallery} == {"best", "median", "worst", "random"}
    assert all(item.pixels is not None and item.references for item in demo.gallery)
    assert [figure.title for figure in demo.brain.pooling] == [
        "subj08",
        *(f"subj{n:02d}" for n in range(1, 8)),
    ]


def test_every_caption_with_bits_has_all_of_its_words(demo):
    for item in demo.gallery:
        found = {one.name: one for one in item.decoded if one.words}
        assert set(found) == {"rft", "sft", "rft, another image's betas"}
        for one in found.values():
            assert [word.word for word in one.words] == one.caption.lower().rstrip(".").split()


def test_reading_a_run_builds_no_model(demo_folder, monkeypatch):
    for name in ("bitllm.model.aligner.load_aligner", "bitllm.model.captioner.load_captioner"):
        module, _, function = name.rpartition(".")
        monkeypatch.setattr(sys.modules[module], function, None, raising=True)
    monkeypatch.setattr("torch.nn.Module.__call__", None)
    assert read_run(demo_folder).brain is not None


def test_the_store_may_be_elsewhere_and_pictures_may_be_left_out(demo_folder, moved):
    assert read_run(moved).gallery[0].pixels is None
    run = read_run(moved, store=demo_folder / "store")
    assert run.gallery[0].pixels is not None
    assert run.brain is not None
    hidden = read_run(moved, store=demo_folder / "store", pictures=False)
    assert all(item.pixels is None for item in hidden.gallery)


def test_real_pictures_are_shown_only_on_request(demo_folder, moved, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(demo_folder / "store", store)
    manifest = store / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"source": "simulated"', '"source": "nsd"'))
    assert read_run(moved, store=store).gallery[0].pixels is None
    assert read_run(moved, store=store, pictures=True).gallery[0].pixels is not None


def test_results_alone_make_a_page(results, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(to_json(results)))
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    run = read_run(tmp_path)
    assert run.results == results
    assert run.curves == {tmp_path.name: [{"step": 1, "loss": 2.0}]}
    assert (run.gallery, run.brain.pooling) == ([], [])


@pytest.mark.parametrize(
    "content", [None, "[]", '{"data": "simulated brain", "systems": {"sft": {"CIDEr": 1.0}}}']
)
def test_a_folder_without_results_or_with_those_of_an_old_version_is_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=r"results\.json"):
        read_run(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "r.html").exists()


def test_a_damaged_log_is_refused(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(DataError, match=r"log\.jsonl"):
        read_curves(tmp_path)


def test_the_command_writes_one_page_about_one_run_or_two(demo_folder, moved, tmp_path, capsys):
    out = tmp_path / "report.html"
    main(["report", str(demo_folder), "--out", str(out)])
    assert out.read_bytes() == (demo_folder / "report.html").read_bytes()
    assert "MB" in capsys.readouterr().out
    main(["report", str(moved), str(moved), "--out", str(out), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [one["about"]["subject"] for one in printed] == ["subj08", "subj08"]
    assert "2 runs side by side" in out.read_text(encoding="utf-8")
