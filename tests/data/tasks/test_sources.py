"""Every source is read from its exact layout; 25 ways of being wrong are refused in one line."""

import copy

import pytest

from bitllm.data.store import open_store
from bitllm.data.tasks import exchanges
from bitllm.data.tasks.sources import SOURCES, add_tasks, derive_from, read_source
from bitllm.data.tasks.summary import licenses_of_tasks, summary_of_tasks
from bitllm.errors import ConfigError, DataError


@pytest.fixture
def read(written, stimuli):
    """Read a source: its exchanges by id."""

    def of(source, contents=None):
        found = read_source(source, written(source, contents), stimuli, "store")
        return {one.id: one for one in found}

    return of


@pytest.mark.parametrize("source", ["vqa-v2", "ok-vqa", "tdiuc"])
def test_vqa_has_ten_answers_with_the_most_common_one_first(read, source):
    found = read(source)
    assert list(found) == [f"{source}:111000", f"{source}:222000"]  # image 999 is not in the store
    one = found[f"{source}:222000"]
    assert (one.nsd_id, one.task, one.questions) == (7, source, ("How many dogs are there?",))
    assert sorted(one.answers[0]) == ["2"] * 9 + ["maybe"] and one.answers[0][0] == "2"
    assert (one.answer_type, one.question_type, one.options) == ("number", "how many", ((),))
    assert found[f"{source}:111000"].answer_type == "yes/no"
    assert one.license == ("CC BY 4.0" if source == "vqa-v2" else "unknown")


def test_ok_vqa_and_tdiuc_need_neither_answer_type_nor_multiple_choice_answer(read, contents_of):
    contents = contents_of("tdiuc")
    for row in contents["annotations.json"]["annotations"]:
        del row["answer_type"], row["multiple_choice_answer"]
        row["answers"] = row["answers"][-1:]
    found = read("tdiuc", contents)
    assert [one.answers for one in found.values()] == [(("no",),), (("2",),)]
    assert [one.answer_type for one in found.values()] == ["yes/no", "number"]


def test_aokvqa_gives_options_and_where_it_is_not_difficult_an_open_question(read):
    found = read("a-okvqa")
    ident = "22MexNkBPpdZGX6sxbxVBH"
    assert list(found) == [f"a-okvqa:{ident}", f"a-okvqa-direct:{ident}", "a-okvqa:q2"]
    choice, direct = found[f"a-okvqa:{ident}"], found[f"a-okvqa-direct:{ident}"]
    assert (choice.answers, choice.answer_type) == ((("cab",),), "choice")
    assert choice.options == (("skateboarder", "train", "delivery", "cab"),)
    assert direct.answers[0][0] == "ride" and len(direct.answers[0]) == 10
    assert direct.options == ((),)


def test_a_dialogue_has_all_rounds_and_options_where_they_are_ranked(read):
    found = read("visdial")
    talk = found["visdial:345678"]
    assert talk.questions == ("is there a dog", "is it in color")
    assert talk.answers == (("yes , a brown one",), ("yes",))
    assert talk.options == (("yes , a brown one", "yes", "no"), ("no", "yes , a brown one", "yes"))
    assert talk.relevance == ((), (0.2, 0.0, 0.8))
    assert found["visdial:111"].options == found["visdial:111"].relevance == ((), ())  # a training image
    assert not any("beach" in text for one in found.values() for text in one.questions)


def test_the_ratings_of_val_have_another_key(read, contents_of):
    contents = contents_of("visdial")
    for row in contents[_R]:
        row["gt_relevance"] = row.pop("relevance")
    assert read("visdial", contents)["visdial:345678"].relevance == ((), (0.2, 0.0, 0.8))


def test_llava_conversations_alternate_without_the_image_token(read):
    found = read("llava")
    assert [one.nsd_id for one in found.values()] == [3, 12]
    one = next(iter(found.values()))
    assert one.questions == ("What is it?", "Which color?")
    assert one.answers == (("A dog on a beach.",), ("Brown.",))
    assert (one.task, one.source, one.answer_type) == ("llava-conversation", "llava", "text")


def test_coco_qa_is_read_line_by_line(read):
    found = list(read("coco-qa").values())
    assert [(one.nsd_id, one.questions[0], one.answers[0][0]) for one in found] == [
        (3, "what is in the park ?", "dog"),
        (7, "how many dogs ?", "two"),
    ]
    assert [one.question_type for one in found] == ["object", "number"]
    assert [one.answer_type for one in found] == ["phrase", "number"]


def test_visual_genome_is_joined_by_the_coco_id_of_its_images(read):
    (one,) = read("visual-genome").values()
    assert (one.nsd_id, one.questions, one.answers) == (7, ("What color is the clock?",), (("Green.",),))
    assert one.license == "CC BY 4.0"


def test_nsd_vqa_is_joined_by_its_own_ids(read):
    found = list(read("nsd-vqa").values())
    assert [(one.nsd_id, one.question_type) for one in found] == [(12, "animal yes/no"), (3, "color")]
    assert found[1].answers == (("red", "dark red"),)
    assert [one.answer_type for one in found] == ["yes/no", "phrase"]


def test_a_table_has_single_questions_options_and_conversations(read):
    single, choice, talk, number = read("table").values()
    assert (single.nsd_id, single.answer_type, single.task) == (3, "yes/no", "questions")
    assert (choice.options, choice.answer_type) == ((("cat", "dog"),), "choice")
    assert talk.questions == ("What is it?", "Where is it?") and talk.answer_type == "phrase"
    assert talk.answers == (("a big dog", "a dog"), ("in a park",))
    assert (number.answers, number.answer_type) == ((("2", "two"),), "number")


def test_a_table_names_the_images_of_a_store_with_names(written, stimuli):
    named = stimuli.assign(stimulus_name=["a", "b", "c", "dog 1"])
    files = written("table", {"own.csv": "image,question,answers\ndog 1,What?,dog\n"})
    (one,) = read_source("table", files, named, "store")
    assert (one.nsd_id, one.task, one.source) == (20, "own", "own")


def _at(*path, value=None):
    """A change of the file's content: the value at ``path`` is replaced, or removed if there is none."""

    def change(contents):
        name, *keys = path
        place = contents[name]
        for key in keys[:-1]:
            place = place[key]
        if value is None:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value

    return change


def _text(name, old, new):
    def change(contents):
        assert old in contents[name]
        contents[name] = contents[name].replace(old, new)

    return change


def _column(name, column, values):
    return lambda contents: contents.update({name: contents[name].assign(**{column: values})})


_Q, _A, _V = "questions.json", "annotations.json", "visdial_1.0_train.json"
_R = "visdial_1.0_train_dense_sample.json"
_K, _L, _N = "aokvqa_v1p0_train.json", "conversation_58k.json", "nsd_vqa.parquet"
BROKEN = [
    ("vqa-v2", _at(_Q, "questions", 0, "image_id", value=222), "one of the image 111"),
    ("vqa-v2", _at(_A, "annotations", 0), "found none for question 111000"),
    ("vqa-v2", _at(_A, "annotations", 0, "image_id", value=222), "one of the image 222"),
    ("vqa-v2", _at(_A, "annotations", 0, "answers"), "`answers`, found NoneType"),
    ("vqa-v2", _at(_A, "annotations", 0, "answers", value=[]), "an answer to"),
    ("vqa-v2", _at(_A, "annotations", 0, "answers", 3, "answer", value=7), "found 7 in number 4"),
    ("vqa-v2", _at(_Q, "questions", 1, "question_id", value=111000), "111000 twice"),
    ("vqa-v2", _at(_Q, "questions", 0, "question", value=" "), "`question`"),
    ("vqa-v2", _at(_Q, "questions", 0, "question_id", value="111000"), "a whole number"),
    ("vqa-v2", lambda c: c.update({_Q: c[_A]}), "questions about images"),
    ("vqa-v2", lambda c: c.update({_Q: "[1"}), "does not parse"),
    ("vqa-v2", lambda c: c.update({_Q: "\ufeff{}".encode("utf-16")}), "UTF-16"),
    ("a-okvqa", _at(_K, 0, "correct_choice_idx", value=4), "found 4 in 22Mex"),
    ("a-okvqa", _at(_K, 0, "direct_answers"), "the test file has no answers"),
    ("a-okvqa", _at(_K, 0, "choices", value=["cab", "cab", "cab", "cab"]), "two different options"),
    ("visdial", _at(_V, "data", "dialogs", 1, "dialog", 0, "gt_index", value=1), "gt_index"),
    ("visdial", _at(_V, "data", "dialogs", 0, "dialog", 0, "answer", value=3), "a number below 3"),
    ("visdial", _at(_V, "data", "dialogs", 1, "image_id", value=111), "visdial:111 twice"),
    ("visdial", _at(_R, 0, "relevance", value=[0.2, 0.8]), "_sample.json: .* of round 2 of image 345678, found 2"),
    ("visdial", _at(_R, 0, "relevance", value=[2, 0, 0]), "numbers from 0 to 1"),
    ("visdial", _at(_R, 0, "round_id"), "a whole number as `round_id`"),
    ("llava", _at(_L, 0, "conversations", 1, "from", value="human"), "human and gpt one after the other"),
    ("llava", _at(_L, 0, "conversations", 3), "human and gpt one after the other"),
    ("llava", _at(_L, 0, "id", value="dog"), "a COCO id as text"),
    ("coco-qa", _text("answers.txt", "dog\n", ""), "expected 3 lines"),
    ("coco-qa", _text("types.txt", "0\n", "4\n"), "found 4"),
    ("visual-genome", lambda c: c.pop("image_data.json"), "found no image_data.json"),
    ("nsd-vqa", _column(_N, "coco_image_id", 5), "0-based"),
    ("nsd-vqa", _column(_N, "answers", "no"), "lists of text"),
    ("table", _text("questions.csv", "3,Is", "99,Is"), "row 1: expected the nsd_id .* found `99`"),
    ("table", _text("questions.csv", "?,yes", "?,"), "an answer to `Is there a dog"),
    ("table", _text("questions.csv", "cat|dog", "cat|cow"), "`dog`"),
    ("table", _text("questions.csv", "talk,2", "talk,3"), "found 1, 3"),
    ("table", _text("questions.csv", ",answers,", ",answer,"), "column `answers`"),
    ("table", lambda c: c.update({"questions.csv": b"image,question,answers\n3,caf\xe9?,yes\n"}), "UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "change", "found"), BROKEN)
def test_a_broken_file_is_refused_in_one_line(read, contents_of, source, change, found):
    contents = copy.deepcopy(contents_of(source))
    change(contents)
    with pytest.raises(DataError, match=found) as error:
        read(source, contents)
    assert "\n" not in str(error.value) and ": expected " in str(error.value)


@pytest.mark.parametrize("source", [name for name in SOURCES if name not in ("table", "nsd-vqa")])
def test_questions_about_other_images_only_are_refused(written, stimuli, source):
    others = stimuli.assign(coco_id=[1001, 1002, 1003, 1004])
    with pytest.raises(DataError, match="found none; check that the ids are COCO's"):
        read_source(source, written(source), others, "store")


def test_an_unknown_source_and_a_source_without_files_are_refused(stimuli):
    with pytest.raises(ConfigError, match="did you mean `vqa-v2`"):
        read_source("vqa2", [], stimuli, "store")
    with pytest.raises(ConfigError, match=r"image_data\.json"):
        read_source("visual-genome", [], stimuli, "store")


def test_a_source_is_replaced_and_the_others_stay(copied_store, tmp_path):
    store = open_store(copied_store)
    first, second = (store.stimuli.index[row] for row in (0, 1))
    for name, nsd_id in (("a.csv", first), ("b.csv", first), ("a.csv", second)):
        (tmp_path / name).write_text(f"image,question,answers\n{nsd_id},What is it?,dog\n")
        found = read_source("table", [tmp_path / name], store.stimuli, store.path, license_name="CC0")
        store = add_tasks(store, found)
    assert {one.task: one.nsd_id for one in exchanges(store)} == {"a": second, "b": first}
    assert licenses_of_tasks(store, {"a"}) == {"a": "CC0"}
    assert [one["source"] for one in summary_of_tasks(store)] == ["a", "b"]


def test_ids_of_another_source_are_refused(copied_store, tmp_path):
    store = open_store(copied_store)
    for name in ("a.csv", "a.tsv"):
        separator = "," if name == "a.csv" else "\t"
        rows = [
            ["image", "question", "answers", "task"],
            [str(store.stimuli.index[0]), "What?", "dog", "own"],
        ]
        (tmp_path / name).write_text("".join(f"{separator.join(row)}\n" for row in rows))
    found = read_source("table", [tmp_path / "a.csv"], store.stimuli, store.path)
    store = add_tasks(store, found)
    with pytest.raises(DataError, match="own:a:1"):
        add_tasks(store, [one.__class__(**{**vars(one), "source": "b"}) for one in found])


def test_a_store_without_objects_derives_nothing(copied_store):
    with pytest.raises(DataError, match=r"objects\.parquet"):
        derive_from(open_store(copied_store))
