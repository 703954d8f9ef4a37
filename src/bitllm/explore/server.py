"""Serve the page until it is interrupted."""

from collections.abc import Callable
from contextlib import suppress
from socket import AF_INET, AF_INET6, create_server, socket

import uvicorn

from bitllm.errors import ConfigError
from bitllm.explore.app import create_app
from bitllm.explore.decode import Decoder
from bitllm.explore.guards import LOOPBACK
from bitllm.explore.jobs import DecodeQueue
from bitllm.explore.session import Session

MAX_CONNECTIONS = 200
"""More at once are answered with 503."""


def listen(host: str, port: int) -> socket:
    """A socket that listens; taken before anything slow is loaded.

    Parameters
    ----------
    host
        Name or address of this machine.
    port
        0 takes a free one.

    Raises
    ------
    ConfigError
        If the port is no port, or cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port: expected 0 to 65535, found {port}")
    try:
        return create_server(
            (host, port), family=AF_INET6 if ":" in host else AF_INET, backlog=MAX_CONNECTIONS
        )
    except OSError as error:
        raise ConfigError(
            f"--port: expected a free port on {host}, found that {port} cannot be had ({error.strerror})"
        ) from None


def serve(
    session: Session,
    listening: socket,
    *,
    host: str,
    names: tuple[str, ...] = (),
    tell: Callable[[str], None] = print,
) -> None:
    """Serve the page until it is interrupted.

    Parameters
    ----------
    session
        The run and the store that are shown.
    listening
        From `listen`.
    host
        The name that it listens under.
    names
        Further names by which the server may be called.
    tell
        Called with one line for the user.
    """
    queue = DecodeQueue(Decoder(session))
    app = create_app(session, queue, hosts=LOOPBACK | {host.lower(), *(name.lower() for name in names)})
    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    address = f"[{host}]" if ":" in host else host
    port = listening.getsockname()[1]
    tell(f"{', '.join(session.folders)} of {session.run}: http://{address}:{port} (Ctrl-C ends it)")
    if host not in LOOPBACK:
        tell("Anyone who reaches this address sees pictures and betas of the store.")
    try:
        with suppress(KeyboardInterrupt):  # the ordinary end
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        queue.close()
