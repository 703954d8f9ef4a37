"""YAML and JSON of configurations: keys are text, each is there once, a word is a list of one."""

import json
from pathlib import Path

import pytest
from pydantic import Field

from bitllm.config import StrictConfig, read_yaml
from bitllm.errors import ConfigError
from bitllm.training.loop import TrainerSettings


class Shelf(StrictConfig):
    """A configuration with every kind of field that YAML guesses wrongly."""

    label: str = ""
    place: Path | None = None
    words: tuple[str, ...] = ()
    places: tuple[Path, ...] | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    names: dict[str, str] = Field(default_factory=dict)
    n: int = 0
    is_open: bool = False
    share: float = 0.5
    either: float | str = 0.0


def read(tmp_path: Path, text: str, name: str = "shelf.yaml") -> Shelf:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return Shelf.read(tmp_path / name)


@pytest.mark.parametrize(
    "written",
    [
        "01",
        "1.10",
        "007",
        "1e3",
        "0x10",
        "1_000",
        "2023-01-01",
        "12:30:45",
        "-0",
        "no",
        "on",
        "Yes",
        "trueish",
    ],
)
def test_a_number_or_date_in_a_field_of_text_is_text_as_it_is_written(tmp_path, written):
    shelf = read(
        tmp_path, f"label: {written}\nplace: {written}\nwords: [{written}, a]\nnames: {{x: {written}}}"
    )
    assert (shelf.label, shelf.place, shelf.words) == (written, Path(written), (written, "a"))
    assert shelf.names == {"x": written}


def test_numbers_stay_numbers_where_the_field_is_a_number(tmp_path):
    shelf = read(tmp_path, "n: 12\nshare: 0.25\neither: 1.5\ncounts: {a: 3}")
    assert (shelf.n, shelf.share, shelf.either, shelf.counts) == (12, 0.25, 1.5, {"a": 3})
    shelf.write(tmp_path / "again.yaml")
    assert Shelf.read(tmp_path / "again.yaml") == shelf


@pytest.mark.parametrize("key", ["01", "010", "1", "no", "null", "1.10", "2023-01-01", '"01"', "'01'"])
def test_a_key_is_text_as_it_is_written(tmp_path, key):
    assert read(tmp_path, f"counts: {{{key}: 5}}").counts == {key.strip("\"'"): 5}


@pytest.mark.parametrize("name", ["shelf.yaml", "shelf.json"])
def test_a_key_in_decomposed_unicode_is_the_composed_one(tmp_path, name):
    assert read(tmp_path, '{"counts": {"cafe\u0301": 5}}', name).counts == {"caf\u00e9": 5}


@pytest.mark.parametrize(("written", "value"), [("yes", True), ("no", False), ("on", True), ("true", True)])
def test_a_boolean_field_takes_all_words_of_yaml(tmp_path, written, value):
    assert read(tmp_path, f"is_open: {written}").is_open is value


@pytest.mark.parametrize(
    "text",
    [
        "n: 1\nshare: 0.5\nn: 2\n",
        "counts:\n  s1: 1\n  s1: 2\n",
        'counts: {"01": 1, 01: 2}',
        "counts: {s1: 1, s1 : 1}",
    ],
)
def test_a_key_twice_is_refused_in_one_line_that_names_file_and_key(tmp_path, text):
    with pytest.raises(ConfigError, match=r"shelf\.yaml: .*`(n|s1|01)` in the lines \d and \d") as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_json_configuration_with_a_key_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"shelf\.json: .*'n'"):
        read(tmp_path, '{"n": 1, "n": 2}', "shelf.json")


def test_merged_keys_of_yaml_may_be_overridden(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {x: 1, y: 2}\nother: &c {<<: *b, x: 3}\nlast: {<<: *c, y: 4}")
    assert read_yaml(tmp_path / "a.yaml")["last"] == {"x": 3, "y": 4}


def test_json_with_tabs_is_read_as_json(tmp_path):
    text = json.dumps({"n": 4, "words": ["é"]}, indent="\t")
    assert read(tmp_path, text, "shelf.json") == Shelf(n=4, words=("é",))


@pytest.mark.parametrize("name", ["shelf.yaml", "shelf.json"])
def test_a_byte_order_mark_is_read_over_and_utf16_is_refused(tmp_path, name):
    assert read(tmp_path, '\ufeff{"n": 3}', name).n == 3
    (tmp_path / name).write_bytes('{"n": 3}'.encode("utf-16"))
    with pytest.raises(ConfigError, match=rf"{name}: .*UTF-16"):
        Shelf.read(tmp_path / name)


def test_a_word_is_a_list_of_one(tmp_path):
    shelf = read(tmp_path, "words: wandb\nplaces: here")
    assert (shelf.words, shelf.places) == (("wandb",), (Path("here"),))


def test_one_tracker_is_written_as_a_word():
    assert TrainerSettings.parse({"report_to": "wandb", "if_changed": "refuse"}).report_to == ("wandb",)
