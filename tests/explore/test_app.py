import io
import json

import numpy as np
import pytest
from PIL import Image


def ask(nsd_id, **changed):
    return {"system": "sft", "subject": "subj08", "nsd_id": nsd_id} | changed


def told(client, body):
    """All events of a decode."""
    answer = client.post("/api/decodes", json=body)
    assert answer.status_code == 202, answer.text
    text = client.get(f"/api/decodes/{answer.json()['id']}/events").text
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]


def test_the_run_tells_what_can_be_chosen(client):
    info = client.get("/api/run").json()
    assert [one["name"] for one in info["systems"]] == ["rft", "sft", "no_align", "prefix", "prefix_mlp"]
    assert {one["name"]: one["interface"] for one in info["systems"]}["prefix_mlp"] == "prefix_mlp"
    assert info["subjects"][0]["name"] == "subj08"
    assert [one["is_trained_on"] for one in info["subjects"]] == [False] + [True] * 7
    assert info["data"] == "simulated"


def test_a_decode_tells_the_caption_with_its_control_and_the_change(client, nsd_id):
    events = told(client, ask(nsd_id, perturbation="silence", roi="streams"))
    assert [event["kind"] for event in events][:3] == ["running", "betas", "loading"]
    assert events[-1]["kind"] == "done"
    panels = {event["panel"]: event for event in events if event["kind"] == "panel"}
    assert list(panels) == ["real", "control", "perturbed"]
    for panel in panels.values():
        assert [one["word"] for one in panel["words"]] == panel["caption"].lower().rstrip(".").split()
        for adapter in panel["adapters"]:
            np.testing.assert_allclose(np.sum(adapter["weights"], axis=1), 1, atol=1e-3)
    assert len(panels["perturbed"]["lost"]) == len(panels["real"]["words"])


def test_the_questions_of_an_image_are_those_of_the_store(client, session, nsd_id):
    found = client.get(f"/api/images/{nsd_id}/questions").json()
    own = session.exchanges(nsd_id)
    assert found["total"] == len(own) > 0
    assert found["exchanges"][0]["questions"] == list(own[0].questions)
    assert found["exchanges"][0]["answers"] == [list(answers) for answers in own[0].answers]
    assert client.get("/api/images/9999999/questions").json() == {"total": 0, "exchanges": []}


@pytest.mark.parametrize("questions", [[""], [" "], ["x" * 301], ["a"] * 13, "a dog ?", [1]])
def test_questions_that_cannot_be_asked_are_refused(client, nsd_id, questions):
    assert client.post("/api/decodes", json=ask(nsd_id, questions=questions)).status_code == 422


def test_what_is_told_again_is_the_same(client, nsd_id):
    first, again = (
        [event for event in told(client, ask(nsd_id, repetition=1)) if event["kind"] == "panel"]
        for _ in range(2)
    )
    assert first == again
    assert len(first) == 2


def test_the_picture_is_the_stores_own(client, session, nsd_id):
    answer = client.get(f"/api/pictures/{nsd_id}")
    assert answer.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), session.picture(nsd_id))


def test_the_brain_has_a_place_for_every_voxel_and_its_regions(client, session):
    brain = client.get("/api/subjects/subj08/brain").json()
    voxels = session.store.subject("subj08").voxels
    assert brain["n_voxels"] == len(brain["x_mm"]) == len(voxels)
    early = brain["rois"]["streams:early"]
    assert len(early) == (voxels["streams"] == 1).sum()


def test_the_page_and_its_parts_are_sent(client):
    for address, kind in (
        ("/", "text/html"),
        ("/explore.js", "text/javascript"),
        ("/explore.css", "text/css"),
    ):
        answer = client.get(address)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"system": "sft"}, 422),
        ({"nsd_id": -1}, 422),
        ({"nsd_id": 10**30}, 422),
        ({"nsd_id": "1"}, 404),
        ({"system": "../../etc/passwd"}, 422),
        ({"system": "sft/../rft"}, 422),
        ({"system": "align"}, 404),
        ({"subject": "subj99"}, 404),
        ({"perturbation": "lesion"}, 422),
        ({"perturbation": "silence"}, 400),
        ({"perturbation": "silence", "roi": "../streams"}, 404),
        ({"perturbation": "silence", "roi": "x" * 200}, 422),
        ({"factor": 1e9}, 422),
        ({"repetition": 0}, 422),
        ({"repetition": 900}, 404),
        ({"seed": 2**40}, 422),
        ({"path": "/etc/passwd"}, 422),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(client, nsd_id, body, status):
    whole = ask(nsd_id) | body if body.keys() - {"system"} or len(body) != 1 else body | {}
    answer = client.post("/api/decodes", json=whole if body else {})
    if body == {"system": "align"} or "/" in body.get("system", ""):
        answer = client.post("/api/decodes", json=ask(nsd_id) | body)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page/index.html",
        "/explore.js/../../app.py",
        "/api/pictures/..%2f..%2fmanifest.json",
        "/api/pictures/999999",
        "/api/subjects/..%2f..%2f/brain",
        "/api/subjects/subj99/images",
        "/api/decodes/0123456789abcdef/events",
        "/api/decodes/../run/events",
        "/docs",
    ],
)
def test_no_path_leads_to_a_file(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 422), path
    assert b"root:" not in answer.content


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"nsd_id": NaN}', b"[" * 9000]
)
def test_a_malformed_body_is_refused(client, content):
    answer = client.post("/api/decodes", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


def test_a_cancelled_decode_is_over(client, nsd_id):
    job = client.post("/api/decodes", json=ask(nsd_id)).json()
    assert client.delete(f"/api/decodes/{job['id']}").status_code == 200
    events = client.get(f"/api/decodes/{job['id']}/events").text
    assert '"kind": "cancelled"' in events or '"kind": "done"' in events
    assert client.get(f"/api/decodes/{job['id']}").json()["state"] in ("cancelled", "done")
