"""Serve the page until it is interrupted."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from bitllm.errors import ConfigError
from bitllm.explore.app import create_app
from bitllm.explore.decode import Decoder
from bitllm.explore.guards import LOOPBACK
from bitllm.explore.jobs import DecodeQueue
from bitllm.explore.session import open_session

MAX_CONNECTIONS = 200
"""More at once are answered with 503."""


def serve(
    run: Path,
    store: Path,
    *,
    host: str,
    port: int,
    names: tuple[str, ...] = (),
    llm: str | None = None,
    split: Path | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Open run and store, and serve the page.

    Parameters
    ----------
    host, port
        Where to listen.
    names
        Further names by which the server may be called.
    llm, split
        Where they do not lie beside the run.
    tell
        Called with one line for the user.

    Raises
    ------
    BitLlmError
        If run, store, split or base LLM are missing or do not fit, or the port is no port or is taken.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port: expected 0 to 65535, found {port}")
    session = open_session(run, store, llm=llm, split=split)
    queue = DecodeQueue(Decoder(session))
    app = create_app(session, queue, hosts=LOOPBACK | {host.lower(), *(name.lower() for name in names)})
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    try:
        listening = config.bind_socket()
    except SystemExit:  # uvicorn has logged the reason
        raise ConfigError(
            f"--port: expected a free port on {host}, found that {port} cannot be had"
        ) from None
    address = f"[{host}]" if ":" in host else host
    tell(
        f"{', '.join(session.folders)} of {run}: http://{address}:{listening.getsockname()[1]} (Ctrl-C ends it)"
    )
    if host not in LOOPBACK:
        tell("Anyone who reaches this address sees pictures and betas of the store.")
    try:
        with suppress(KeyboardInterrupt):  # the ordinary end
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        queue.close()
