import json
import re
import subprocess
import sys

import pytest

import bitllm
from bitllm.cli import main
from bitllm.errors import ConfigError, DataError, OutputError


def mistake(words, capsys):
    """Run a command that must fail; return its one line."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("bitllm: ")
    return lines[0]


@pytest.mark.parametrize("command", [[], ["demo"], ["simulate"], ["prepare", "nsd"], ["inspect"], ["score"]])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "usage: bitllm" in said
    expected = {"demo": "--data.signal", "simulate": "--preset", "inspect": "--json", "score": "--references"}
    if command:
        assert expected.get(command[0], "--roi") in said
    else:
        assert all(name in said for name in ("demo", "simulate", "prepare nsd", "inspect", "score"))


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_one_line(flag, capsys):
    main([flag])
    assert capsys.readouterr().out == f"bitllm {bitllm.__version__}\n"


def test_help_of_the_installed_program_is_quick_to_import():
    """Without torch: the libraries are imported by the commands that need them."""
    code = (
        "import sys, bitllm.cli\n"
        "try: bitllm.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False False"


def test_simulate_prepare_and_inspect_follow_one_another(tmp_path, capsys):
    main(["simulate", str(tmp_path / "nsd"), "--preset", "tiny", "--seed", "3"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "simulated release written (preset tiny, seed 3)" in said
    assert "next: bitllm prepare nsd" in said
    store = tmp_path / "store"
    main(["prepare", "nsd", str(tmp_path / "nsd"), str(store), "--validation-fraction", "0.2"])
    assert "bitllm inspect" in re.sub(r"\s+", " ", capsys.readouterr().out)
    main(["inspect", str(store), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found["subjects"]) == [f"subj{number:02d}" for number in range(1, 9)]
    main(["inspect", str(store)])
    assert "subj08" in capsys.readouterr().out
    line = mistake(["prepare", "nsd", tmp_path / "nsd", store], capsys)
    assert f"{store}: expected an empty or a new folder" in line
    line = mistake(["prepare", "nsd", tmp_path / "nsd", tmp_path / "other", "--roi", "nsdgenral"], capsys)
    assert "nsdgenral" in line


def test_a_mistake_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    line = mistake(["simulate", tmp_path, "--preset", "tiny"], capsys)
    assert line == (
        f"bitllm: {tmp_path}: expected an empty or a new folder, found files in it; name another folder or "
        "empty it"
    )
    line = mistake(["simulate", tmp_path / "new", "--preset", "tinny"], capsys)
    assert "found `tinny`; did you mean `tiny`?" in line
    line = mistake(["demo", "--out", tmp_path, "--recipe", "smoke"], capsys)
    assert "found other files; name another with --out" in line
    assert "expected a store" in mistake(["inspect", tmp_path], capsys)
    assert "expected one of" in mistake(["demo", "--recipe", "tinyy", "--out", tmp_path / "new"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "words",
    [
        *[["simulate", out, "--preset", "tiny"] for out in ("", "{file}/new", "{long}")],
        *[["prepare", "nsd", "{long}", "{new}"], ["prepare", "table", "{long}", "{new}"]],
        *[["inspect", "{long}"], ["split", "{long}", "{new}"], ["audit", "{long}"]],
        ["simulate", "{new}", "--preset", "tiny", "--signal", "inf"],
        ["simulate", "{new}", "--preset", "tiny", "--misalignment-mm", "nan"],
    ],
)
def test_paths_and_numbers_that_cannot_be_are_one_line(words, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    places = {"file": tmp_path / "file", "new": tmp_path / "new", "long": tmp_path / ("n" * 300)}
    mistake([word.format(**places) for word in words], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["simulate", "{tmp}", "--preset", "huge"], ConfigError),
        (["inspect", "{tmp}"], DataError),
        (["demo", "--recipe", "smoke", "--out", "{tmp}"], OutputError),
    ],
)
def test_debug_lets_the_traceback_through(words, error, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(error):
        main([word.format(tmp=tmp_path) for word in words] + ["--debug"])


def test_an_unknown_option_is_status_2_without_a_traceback(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--sede", "3"])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "--sede" in said.out + said.err
    assert "Traceback" not in said.out + said.err


def test_an_interrupt_is_status_130_and_one_line(monkeypatch, capsys, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bitllm.simulation.release.simulate_release", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", str(tmp_path / "nsd"), "--preset", "tiny"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err.strip() == (
        "bitllm: interrupted; run the same command again to resume after the finished steps"
    )


def test_score_reads_the_captions_of_the_demo(demo_folder, capsys):
    captions = demo_folder / "captions" / "rft.jsonl"
    main(["score", str(captions), "--json", "--no-meteor"])
    scores = json.loads(capsys.readouterr().out)
    results = json.loads((demo_folder / "results.json").read_text())
    assert scores["metrics"]["CIDEr"] == pytest.approx(
        results["systems"]["rft"]["averaged"]["real"]["scores"]["CIDEr"]["value"]
    )
    assert set(scores["floors"]) == {"permuted", "human", "constant"}
    main(["score", str(captions), "--no-meteor"])
    said = capsys.readouterr().out
    assert all(word in said for word in ("CIDEr", "BLEU-4", "permuted", "human"))


def test_score_reads_plain_json_of_any_decoder(tmp_path, capsys):
    captions, references = tmp_path / "captions.json", tmp_path / "references.json"
    captions.write_text(json.dumps({"1": "a dog runs", "2": "two boats", "3": "a red bus"}))
    references.write_text(
        json.dumps({"1": ["a dog runs", "a dog"], "2": ["boats", "a boat"], "3": ["bus", "a"]})
    )
    main(["score", str(captions), "--references", str(references), "--json", "--no-meteor"])
    scores = json.loads(capsys.readouterr().out)
    assert scores["n_images"] == 3
    assert scores["metrics"]["BLEU-1"] > 50
    line = mistake(["score", captions], capsys)
    assert "give them with --references FILE" in line
    assert "expected" in mistake(["score", tmp_path / "none.jsonl"], capsys)
