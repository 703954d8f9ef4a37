"""The page as it is served: many clients, a decode that nobody waits for, and every address fuzzed."""

import asyncio
import json
import threading

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from bitllm.cli import main
from bitllm.explore.jobs import DecodeQueue
from bitllm.explore.server import LOOPBACK, create_app
from bitllm.explore.work import Decoder


async def _decode(client, body, refused):
    """Ask until there is a place, read the events; the last one's kind. ``refused`` is set at the first refusal."""
    while (answer := await client.post("/api/decodes", json=body)).status_code == 429:
        assert answer.headers["retry-after"]
        refused.set()
        await asyncio.sleep(
            0.5
        )  # asks again, seldom: fifty impatient clients would leave no time for decoding
    assert answer.status_code == 202, answer.text
    text = (await client.get(f"/api/decodes/{answer.json()['id']}/events")).text
    lines = [line for line in text.splitlines() if line]
    return json.loads(lines[-1].removeprefix("data: "))["kind"]


def test_fifty_clients_at_once_are_all_answered_and_the_page_stays_quick(served, nsd_id, monkeypatch):
    refused, decode = threading.Event(), Decoder.__call__

    def slow(decoder, job):  # no decode begins before the queue was full once
        assert refused.wait(60), "fifty at once should meet a full queue"
        decode(decoder, job)

    monkeypatch.setattr(Decoder, "__call__", slow)

    async def together():
        limits = httpx.Limits(max_connections=120)
        async with httpx.AsyncClient(base_url=served, timeout=120, limits=limits) as client:
            body = {"system": "rft", "subject": "subj08", "nsd_id": nsd_id, "perturbation": "zero"}
            decodes = [asyncio.create_task(_decode(client, body, refused)) for _ in range(50)]
            pages = [await client.get("/api/run") for _ in range(5)]  # while they decode
            return [page.status_code for page in pages], await asyncio.gather(*decodes)

    pages, ends = asyncio.run(together())
    assert pages == [200] * 5
    assert ends == ["done"] * 50


def test_a_client_that_goes_away_leaves_the_next_decode_alone(served, nsd_id):
    body = {"system": "sft", "subject": "subj08", "nsd_id": nsd_id}
    with httpx.Client(base_url=served, timeout=60) as client:
        gone = client.post("/api/decodes", json=body).json()["id"]
        with client.stream("GET", f"/api/decodes/{gone}/events") as events:
            next(events.iter_lines())
        client.delete(f"/api/decodes/{gone}")
        after = client.post("/api/decodes", json=body).json()["id"]
        assert client.get(f"/api/decodes/{after}/events").text.rstrip().endswith('{"kind": "done"}')


@pytest.fixture(scope="module")
def schema(session):
    """The addresses as the application describes them itself."""
    queue = DecodeQueue(Decoder(session, max_new_tokens=2))
    app = create_app(session, queue, hosts=LOOPBACK | {"testserver"})
    yield schemathesis.openapi.from_asgi("/api/openapi.json", app)
    queue.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_address_answers_otherwise_than_it_says(schema, mode):
    checks = [
        *(not_a_server_error, status_code_conformance),
        *(content_type_conformance, response_schema_conformance),
    ]
    seen = []
    for operation in (result.ok() for result in schema.get_all_operations()):

        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @seed(0)
        @given(case=operation.as_strategy(generation_mode=mode))
        def fuzz(case):
            case.validate_response(case.call(), checks=checks)

        if mode is GenerationMode.POSITIVE or operation.path != "/api/run":  # nothing can be wrong there
            fuzz()
        seen.append(f"{operation.method} {operation.path}".upper())
    assert len(seen) == 9


def test_a_run_that_is_not_there_is_one_line(tmp_path, demo_folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["explore", str(tmp_path / "none"), str(demo_folder / "store")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("bitllm: ")


def test_a_port_that_is_none_or_taken_is_one_line(served, demo_folder, capsys):
    for port in ("70000", served.rpartition(":")[2]):
        with pytest.raises(SystemExit) as ended:
            main(["explore", str(demo_folder), str(demo_folder / "store"), "--port", port])
        assert ended.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("bitllm: --port: expected")


def test_the_address_is_told_a_warning_is_given_and_an_interruption_is_the_ordinary_end(
    demo_folder, monkeypatch, capsys
):
    def interrupted(self, sockets):
        host, port = sockets[0].getsockname()
        assert (host, port > 0) == ("0.0.0.0", True)
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    words = ["--host", "0.0.0.0", "--port", "0", "--names", "lab.example"]
    main(["explore", str(demo_folder), str(demo_folder / "store"), *words])
    said = capsys.readouterr().out
    assert "http://0.0.0.0:" in said
    assert "Anyone who reaches this address" in said
