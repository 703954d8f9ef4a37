import pytest
from starlette.testclient import TestClient

from bitllm.explore.server import MAX_BODY_BYTES, MAX_QUERY_BYTES, Guards, host_name


async def echo(scope, receive, send):
    """Answers with the body that came."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


@pytest.fixture
def client():
    return TestClient(Guards(echo, hosts=("127.0.0.1", "localhost")), base_url="http://localhost:8421")


def test_what_is_ours_passes_with_its_body_and_gets_the_headers(client):
    answer = client.post("/", content=b"x" * 100, headers={"origin": "http://127.0.0.1:8421"})
    assert (answer.status_code, answer.content) == (200, b"x" * 100)
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8421", "", "[::2]:1", "127.0.0.1.nip.io"]
)
def test_a_foreign_host_is_refused(client, host):
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "its own name" in answer.json()["detail"]


def test_a_page_of_another_site_is_refused(client):
    for origin in ("http://evil.example", "null", "https://localhost.evil.example"):
        assert client.post("/", headers={"origin": origin}).status_code == 403


def test_a_large_body_is_refused_whether_it_says_its_size_or_not(client):
    def pieces():
        for _ in range(40):
            yield b"x" * 1000

    assert client.post("/", content=b"x" * (MAX_BODY_BYTES + 1)).status_code == 413
    assert client.post("/", content=pieces()).status_code == 413
    assert client.post("/", content=b"x" * MAX_BODY_BYTES).status_code == 200
    assert client.post("/", content=b"x", headers={"content-length": "-1"}).status_code == 413


def test_a_long_query_is_refused(client):
    assert client.get("/?" + "q" * (MAX_QUERY_BYTES + 1)).status_code == 414


@pytest.mark.parametrize(
    ("value", "name"), [("LocalHost:80", "localhost"), ("[::1]:8421", "::1"), ("a.b", "a.b"), ("", "")]
)
def test_the_name_is_read_out_of_host(value, name):
    assert host_name(value) == name
