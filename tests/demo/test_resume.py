import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest

from bitllm.cli import main
from bitllm.errors import OutputError
from bitllm.evaluation.results import Results, from_json
from bitllm.evaluation.table import read_evaluation
from bitllm.pipeline.steps import Steps
from bitllm.stages.sft import SftConfig
from bitllm.training.loop import OptimizerConfig

SYSTEMS = ["sft", "rft", "prefix", "prefix_mlp", "no_align"]


def run(folder, capsys, config="smoke"):
    """Run the demo; return the steps that were made and those that were kept."""
    main(["demo", "--recipe", str(config), "--out", str(folder)])
    said = capsys.readouterr().out
    kept = re.findall(r"^(\S.*?) +kept from an earlier run$", said, flags=re.MULTILINE)
    made = re.findall(r"^(\S.*?) +\d+\.\d s$", said, flags=re.MULTILINE)
    return made, kept


def start(folder, recipe):
    return subprocess.Popen(
        [sys.executable, "-m", "bitllm", "demo", "--recipe", str(recipe), "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
        # a shell that runs the tests in the background has them ignore Ctrl-C, which a child inherits
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )


def stop_when(process, has_come, how):
    """Send a signal as soon as ``has_come()``; fail if the run ends before."""
    deadline = time.monotonic() + 120
    while not has_come():
        assert process.poll() is None, "the demo ended before the moment came"
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.002)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def holds(path):
    return path.is_file() and path.stat().st_size > 0


def test_only_what_a_change_concerns_is_made_again(demo_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bitllm.report.page.write_report", lambda *_: None)
    copied = shutil.copytree(demo_folder, tmp_path / "demo")
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")}
    (copied / "evaluation" / "steps" / "evaluate rft.json").unlink()
    (copied / "evaluation" / "rft" / "part.json").write_text("half a li")
    made, kept = run(copied, capsys)
    assert made == ["evaluate rft"], "a step without its mark, and it alone"
    assert len(kept) == 17
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")} == before
    (tmp_path / "other.yaml").write_text("base: smoke\nsft: {adapter_layers: [1]}")
    made, kept = run(copied, capsys, config=tmp_path / "other.yaml")
    # the linear prefix has no adapters: trained again, it has the same weights, and its evaluation stays valid
    assert made == [*SYSTEMS, *(f"evaluate {name}" for name in SYSTEMS if name != "prefix")]
    reused = ["simulate", "prepare", "split", "clip", "llm", "targets", "align", "evaluate encoder"]
    assert sorted(kept) == sorted([*reused, "evaluate prefix"])


def test_a_run_that_was_stopped_three_times_ends_like_one_that_was_not(
    demo_folder, tmp_path, capsys, monkeypatch
):
    """Ctrl-C in the simulation, SIGKILL in the middle of sft and of rft; then one run to the end."""
    monkeypatch.setattr("bitllm.report.page.write_report", lambda *_: None)
    out, recipe = tmp_path / "demo", tmp_path / "main_systems.yaml"
    recipe.write_text("base: smoke\nvariants: {prefix: null, prefix_mlp: null, no_align: null}")
    subject, mark = out / "nsd.unfinished" / "nsddata" / "ppdata" / "subj03", out / "steps" / "simulate.json"
    code, err = stop_when(start(out, recipe), lambda: subject.is_dir() or mark.is_file(), signal.SIGINT)
    assert code == 130
    lines = [line for line in err.splitlines() if line.strip()]
    assert lines[-1].startswith("bitllm: interrupted; ")
    assert "Traceback" not in err
    assert list(out.glob("*.unfinished")) == []
    for stage in ("sft", "rft"):
        begun = partial(holds, out / f"{stage}.training" / "log.jsonl")
        code, _ = stop_when(start(out, recipe), begun, signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not (out / "steps" / f"{stage}.json").exists()
        assert not (out / "results.json").exists()
    made, kept = run(out, capsys, recipe)
    assert kept == ["simulate", "prepare", "split", "clip", "targets", "align", "llm", "sft"]
    assert made == ["rft", "evaluate encoder", "evaluate sft", "evaluate rft"]
    for name in ("align/aligner", "sft/model", "rft/adapter_model"):
        weights = (out / f"{name}.safetensors").read_bytes()
        assert weights == (demo_folder / f"{name}.safetensors").read_bytes(), name
    rows = read_evaluation(demo_folder).rows
    same = rows[rows["system"].isin(["encoder", "sft", "rft"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(read_evaluation(out).rows, same)
    main(["demo", "--recipe", str(recipe), "--out", str(out), "--json"])
    again = from_json(Results, json.loads(capsys.readouterr().out), "stdout")
    results = from_json(Results, json.loads((out / "results.json").read_text()), "results.json")
    moving = {"seconds": {}, "peak_memory_gb": 0.0, "command": "", "git_revision": None}
    one, other = (replace(some, about=replace(some.about, **moving)) for some in (again, results))
    assert one == other


def test_what_a_killed_run_began_is_not_mixed_into_the_checkpoint(easy, easy_sft, tmp_path):
    """The log of steps that were thrown away would show as a second curve in TensorBoard."""
    log = tmp_path / "sft.training"
    (log / "runs" / "killed").mkdir(parents=True)
    (log / "runs" / "killed" / "events.out.tfevents.1").write_bytes(b"of a run that was killed")
    short = OptimizerConfig(steps=1, batch_size=2, learning_rate=1e-3, warmup_steps=0)
    easy_sft(easy, tmp_path / "sft", SftConfig(adapter_layers=(0,), optimizer=short))
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]
    assert not (tmp_path / "sft" / "runs" / "killed").exists()


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="expected a new folder or that of an earlier demo, found other"):
        Steps(tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(OutputError, match="demo: expected"):
        Steps(tmp_path / "demo", print)


def test_a_step_that_fails_has_no_mark_and_is_made_by_the_next_run(tmp_path):
    def fail():
        raise RuntimeError("in the middle")

    steps = Steps(tmp_path / "demo", lambda line: None)
    with pytest.raises(RuntimeError, match="in the middle"):
        steps.run("one", fail, settings=1)
    assert list((tmp_path / "demo" / "steps").glob("*.json")) == []
    made = []
    for _ in range(2):
        steps = Steps(tmp_path / "demo", lambda line: None)
        steps.run("one", lambda: made.append("one"), settings=1)
    assert made == ["one"]
    assert steps.kept == ["one"]


def test_a_step_whose_file_was_deleted_is_made_again(tmp_path):
    rows, made = tmp_path / "rows.parquet", []

    def write():
        rows.write_text("rows")
        made.append("rows")

    for is_deleted in (False, False, True):
        if is_deleted:
            rows.unlink()
        Steps(tmp_path / "run", lambda line: None).run("rows", write, settings=None, file=rows)
    assert made == ["rows", "rows"]
    assert rows.exists()


def test_a_step_is_made_again_when_its_settings_or_a_step_before_it_change(tmp_path):
    made = []

    def road(first, second):
        steps = Steps(tmp_path / "demo", lambda line: None)
        steps.run("first", lambda: made.append("first"), settings=first)
        steps.run("second", lambda: made.append("second"), settings=second, after=("first",))
        steps.run("alone", lambda: made.append("alone"), settings=0)
        return steps

    road(1, 1)
    road(1, 2)
    road(2, 2)
    assert made == ["first", "second", "alone", "second", "first", "second"]
    assert road(2, 2).kept == ["first", "second", "alone"]
    assert json.loads((tmp_path / "demo" / "steps" / "first.json").read_text())["seconds"] == 0.0
