"""Arguments that make no sense are one line and exit status 2, before any work starts."""

import shutil
import signal

import pytest

from bitllm.cli import main

CONTENT = {
    "empty": b"",
    "null": b"null",
    "list": b"[1, 2]",
    "number": b"3",
    "word": b"word",
    "map": b'{"a": NaN, "1": null}',
    "deep": b"[" * 30_000,
    "binary": bytes(range(256)) * 4,
    "utf16": '{"1": "a dog"}'.encode("utf-16"),
}
ODD_PATHS = ("", "{folder}", "{file}/below", "{long}", "{missing}")
FILES = (*ODD_PATHS, *(f"{{{name}}}" for name in CONTENT))
SOME = ("", "{folder}", "{long}", "{null}", "{binary}")
NUMBERS = ("-1", "nan", "inf", "1e400", "9" * 400, "", "x", "1.5")
PLACES = ("", "{file}/below", "{long}")

SLOTS = {
    "score {}": FILES,
    "score {captions} --references {}": FILES,
    "score {captions} --references {references} --training-references {}": FILES,
    "score {captions} --references {references} --compare {}": FILES,
    "score {captions} --references {references} --per-image {}": (*PLACES, "{folder}"),
    "score {captions} --references {references} --no-meteor --clip {} --images {folder}": SOME,
    "score {captions} --references {references} --no-meteor --clip {clip} --images {}": SOME,
    "score {captions} --references {references} --no-meteor --seed {}": NUMBERS,
    "report {}": FILES,
    "report {judged} --out {}": (*PLACES, "{folder}"),
    "report {judged} --out {new} --store {}": FILES,
    "ask {} dog --image 1": FILES,
    "ask {run} dog --store {store} --image {}": NUMBERS,
    "explore {} {store}": FILES,
    "explore {run} {}": FILES,
    "explore {run} {store} --llm {}": SOME,
    "explore {run} {store} --split {}": FILES,
    "explore {run} {store} --port {}": (*NUMBERS, "70000"),
    "explore {run} {store} --host {}": ("no such host", "{long}"),
    "export {} {new}": FILES,
    "export {run} {}": (*PLACES, "{file}", "{full}"),
    "export {run} {new} --llm {}": SOME,
    "export {run} {new} --system {}": ("", "x", ".."),
    "reproduce {}": ("", "x", "..", "{folder}"),
    "reproduce reward --quick --out {}": ("{file}/below", "{long}", "{file}"),
    "reproduce reward --quick --out {new} --seeds {}": (*NUMBERS, "0"),
    "reproduce reward --quick --out {new} --model-seeds {}": (*NUMBERS, "0"),
    "reproduce reward --quick --out {new} --experiments {}": SOME,
    "params {}": FILES,
    "params smoke --encoder.token-width {}": (*NUMBERS, "0"),
    "preflight {}": SOME,
    "preflight smoke --align-batch {}": (*NUMBERS, "0"),
    "preflight smoke --sft-batch {}": (*NUMBERS, "0"),
    "preflight smoke --rft-batch {}": (*NUMBERS, "0"),
    "preflight smoke --limit-gb {}": ("-1", "nan", "", "x"),
    "train {} --out {new}": SOME,
    "train smoke {} --out {new}": ("", "x", ".."),
    "train smoke align --out {}": ("{file}/below", "{long}", "{file}", "{full}"),
    "train smoke align --out {new} --data.store {}": SOME,
    "train smoke align --out {new} --align.optimizer.learning-rate {}": ("-1", "nan", "inf", "", "x"),
    "demo --recipe {} --out {new}": SOME,
    "demo --recipe smoke --out {}": ("{file}/below", "{long}", "{file}", "{full}"),
    "demo --recipe smoke --out {new} --data.signal {}": ("-1", "nan", "inf", "", "x"),
    "demo --recipe smoke --out {new} --data.preset {}": ("", "x"),
    "demo --recipe smoke --out {new} --seed {}": ("-1", "nan", "1.5", "", "x", "9" * 400),
    "evaluate {} {store}": FILES,
    "evaluate {run} {}": FILES,
    "evaluate {run} {store} --llm {}": SOME,
    "evaluate {run} {store} --split {}": FILES,
    "evaluate {run} {store} --judge-on {}": FILES,
    "evaluate {run} {store} --align {}": SOME,
    "evaluate {run} {store} --targets {}": SOME,
    "evaluate {run} {store} --words {}": FILES,
    "evaluate {run} {store} --rois {}": ("x", "prf-visualrois:x"),
    "evaluate {run} {store} --subject {}": ("", ".."),
    "evaluate {run} {store} --systems {}": ("", "x", ".."),
    "evaluate {run} {store} --out {}": (*PLACES, "{file}", "{full}"),
    "evaluate {run} {store} --maps {}": (*PLACES, "{file}", "{full}"),
    "evaluate {run} {store} --seed {}": NUMBERS,
    "evaluate {run} {store} --max-new-tokens {}": (*NUMBERS, "0"),
    "evaluate {run} {store} --questions-per-task {}": NUMBERS,
    "evaluate {run} {store} --tasks {}": ("", "x"),
    "embed {} --clip {clip}": FILES,
    "embed {store} --clip {}": SOME,
    "embed {store} --clip {clip} --out {}": (*PLACES, "{folder}"),
    "inspect {}": FILES,
    "audit {}": FILES,
    "audit {store} {}": SOME,
    "audit {store} --split {}": FILES,
    "split {} {new}": FILES,
    "split {store} {}": (*PLACES, "{folder}"),
    "split {store} {new} --max-cosine 0.9 --embeddings {}": SOME,
    "split {store} {new} --trials {}": (*NUMBERS, "0"),
    "prepare table {} {new}": FILES,
    "prepare nsd {} {new}": FILES,
}


@pytest.fixture(scope="module")
def places(easy, small_clip_folder, tmp_path_factory):
    """Paths by the names that the slots use."""
    root = tmp_path_factory.mktemp("fuzz")
    for name, content in CONTENT.items():
        (root / f"{name}.json").write_bytes(content)
    (root / "folder").mkdir()
    (root / "full").mkdir()
    (root / "full/thesis.tex").write_text("mine")
    (root / "judged").mkdir()
    (root / "judged/results.json").write_text("{}")
    (root / "captions.json").write_text('{"1": "a dog", "2": "a cat"}')
    (root / "references.json").write_text('{"1": ["a dog", "dogs"], "2": ["a cat", "cats"]}')
    named = {name: root / f"{name}.json" for name in (*CONTENT, "captions", "references", "missing")}
    named |= {name: root / name for name in ("folder", "full", "judged")}
    named |= {"file": root / "word.json", "long": root / ("n" * 300), "clip": small_clip_folder}
    return named | {"run": easy.folder / "sft", "store": easy.store.path}


def problem(words, capsys):
    """Why the answer to a command is not one line and status 2; None if it is."""
    capsys.readouterr()
    signal.alarm(60)
    try:
        main(words)
        return "it ran"
    except SystemExit as end:
        code = end.code
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is no line
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    said = capsys.readouterr().err
    lines = [line for line in said.strip().splitlines() if "Loading weights" not in line]
    is_usage = any(title in said for title in ("Arguments", "Parsing error", "Value error"))  # of tyro
    is_line = len(lines) == 1 and lines[0].startswith("bitllm: ")
    return (
        None if code == 2 and (is_usage or is_line) and "Traceback" not in said else f"{code}: {said[:300]}"
    )


@pytest.mark.parametrize("slot", list(SLOTS))
def test_arguments_that_make_no_sense_are_one_line(slot, places, tmp_path, capsys):
    found, places = {}, places | {"new": tmp_path / "new"}
    for bad in SLOTS[slot]:
        values = [bad if word == "{}" else word for word in slot.split()]
        found[bad] = problem([word.format(**places) for word in values], capsys)
    assert not {bad: said for bad, said in found.items() if said is not None}
    assert not places["new"].exists()


RECORDS = {
    "sft/bitllm.json": "export {sft} {new}",
    "sft/config.json": "export {sft} {new}",
    "sft/run.json": "evaluate {sft} {store}",
    "align/aligner.json": "evaluate {sft} {store}",
    "split.json": "evaluate {sft} {store} --split {copy}/split.json",
    "results.json": "report {copy} --out {new}",
    "store/manifest.json": "inspect {copy}/store",
    "llm/config.json": "params {copy}/recipe.yaml",
}


@pytest.mark.parametrize("content", ["null", "[1]"])
@pytest.mark.parametrize("record", list(RECORDS))
def test_a_record_without_its_content_is_one_line(record, content, places, tmp_path, capsys):
    copy = tmp_path / "copy"
    for name in ("sft", "align", "llm"):
        shutil.copytree(places["run"].parent / name, copy / name)
    (copy / "store").mkdir()
    (copy / "recipe.yaml").write_text(f"base: smoke\nllm: {{source: {copy}/llm, sizes: null}}\n")
    (copy / record).write_text(content)
    words = RECORDS[record].format(**places | {"copy": copy, "sft": copy / "sft", "new": tmp_path / "new"})
    assert problem(words.split(), capsys) is None
