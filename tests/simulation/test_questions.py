"""Questions and dialogues of simulated scenes: true, in the layouts of VQAv2 and VisDial, the same for one seed."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from bitllm.simulation import vocabulary as words
from bitllm.simulation.questions import N_OPTIONS, questions_of, write_visdial, write_vqa
from bitllm.simulation.scenes import captions_of, make_scenes

SCENES = make_scenes(300, seed=4)
IDS = [1000 + 3 * n for n in range(300)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    write_vqa(folder, IDS, SCENES, seed=1)
    write_visdial(folder, IDS, SCENES, captions_of(SCENES, seed=1), seed=1)
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


def test_a_scene_is_asked_for_everything_that_it_has():
    scene = next(one for one in SCENES if one.object == "dog" and one.colour and one.partner)
    scene = replace(scene, count=2, relation="behind", partner="couch", setting="park")
    asked = {one.text: one.answer for one in questions_of(scene)}
    assert asked["What is the main object?"] == "dog"
    assert asked["How many dogs are there?"] == "2"
    assert asked["What color are the dogs?"] == scene.colour
    assert asked["What are the dogs behind?"] == "couch"
    assert asked["Where are the dogs?"] == "in a park"
    assert asked["Is it indoors?"] == "no"
    assert asked["What are the dogs doing?"] == words.ACTIONS[scene.action][0]
    alone = {one.kind for one in questions_of(replace(scene, colour="", partner="", relation=""))}
    assert not alone & {"what color", "relation"}


def test_every_question_has_ten_answers_and_the_usual_one_is_the_most_frequent(files):
    questions = files["v2_OpenEnded_mscoco_train2014_questions.json"]["questions"]
    annotations = files["v2_mscoco_train2014_annotations.json"]["annotations"]
    assert set(Counter(one["image_id"] for one in questions).values()) == {4}
    assert [one["question_id"] for one in questions] == [one["question_id"] for one in annotations]
    assert len({one["question_id"] for one in questions}) == len(questions)
    scene_of = dict(zip(IDS, SCENES, strict=True))
    for question, one in zip(questions, annotations, strict=True):
        true = {asked.text: asked.answer for asked in questions_of(scene_of[one["image_id"]])}
        counts = Counter(answer["answer"] for answer in one["answers"])
        assert sum(counts.values()) == 10
        assert one["multiple_choice_answer"] == counts.most_common(1)[0][0] == true[question["question"]]


def test_dialogues_have_ten_rounds_with_the_answer_among_different_options(files):
    data = files["visdial_1.0_train.json"]["data"]
    places = set()
    for one, scene in zip(data["dialogs"], SCENES, strict=True):
        assert len(one["dialog"]) == 10
        said = {
            data["questions"][turn["question"]]: data["answers"][turn["answer"]] for turn in one["dialog"]
        }
        assert said["what color is it"] == (scene.colour or "i can not tell")
        assert said["is it indoors"] == ("yes" if scene.setting in words.INDOOR else "no")
        assert ("where is it then" in said) == bool(scene.partner)
        for turn in one["dialog"]:
            assert len(set(turn["answer_options"])) == N_OPTIONS
            assert turn["answer_options"][turn["gt_index"]] == turn["answer"]
            places.add(turn["gt_index"])
    assert places == set(range(N_OPTIONS))


def test_the_same_seed_gives_the_same_files(files, tmp_path):
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        write_vqa(tmp_path / str(seed), IDS, SCENES, seed=seed)
    for name in ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"):
        assert json.loads((tmp_path / "1" / name).read_text()) == files[name]
        assert json.loads((tmp_path / "2" / name).read_text()) != files[name]
