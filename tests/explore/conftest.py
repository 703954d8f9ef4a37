"""The page's parts on the smallest demo and on the easy brain, and the page served on a port of its own."""

import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.testclient import TestClient

from bitllm.explore.jobs import DecodeQueue
from bitllm.explore.server import LOOPBACK, create_app, listen
from bitllm.explore.work import Decoder, Session, open_session


@pytest.fixture(scope="session")
def session(demo_folder) -> Session:
    """All systems of the smallest demo."""
    return open_session(demo_folder, demo_folder / "store")


@pytest.fixture(scope="session")
def easy_session(easy) -> Session:
    """The one system of the easy brain, which decodes well."""
    return open_session(easy.folder / "sft", easy.store.path)


@pytest.fixture(scope="session")
def nsd_id(session) -> int:
    """A test image of subj08 that was seen more than once."""
    images = session.images("subj08", "test", offset=0, limit=1000).images
    return next(image.nsd_id for image in images if image.n_repetitions > 1)


@pytest.fixture(scope="module")
def client(session) -> Iterator[TestClient]:
    """The application, called without a network."""
    queue = DecodeQueue(Decoder(session, max_new_tokens=6))
    with TestClient(create_app(session, queue, hosts=LOOPBACK), base_url="http://127.0.0.1") as made:
        yield made
    queue.close()


@pytest.fixture(scope="session")
def served(session) -> Iterator[str]:
    """Address of the page, served by uvicorn in a thread."""
    yield from _served(session)


@pytest.fixture(scope="session")
def easy_served(easy_session) -> Iterator[str]:
    """The same for the easy brain."""
    yield from _served(easy_session)


def _served(session: Session) -> Iterator[str]:
    queue = DecodeQueue(Decoder(session, max_new_tokens=12))
    app = create_app(session, queue, hosts=LOOPBACK)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    listening = listen("127.0.0.1", 0)  # it listens from here on: early clients wait in its backlog
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    queue.close()
