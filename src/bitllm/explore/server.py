"""The server of the page: its routes, the checks of every request, and ``serve``.

The page is for the person at this machine. A foreign name in ``Host`` is how a web page of another site reaches a
server on 127.0.0.1 (DNS rebinding); a foreign ``Origin`` is how it makes the visitor's browser call it. Browsers
refer to things only by ids that are looked up in the run and the store; no path in a request is ever opened.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from importlib.resources import files
from socket import AF_INET, AF_INET6, create_server, socket
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitllm import __version__
from bitllm.errors import BitLlmError, ConfigError
from bitllm.explore.jobs import DecodeQueue, Job, QueueFullError
from bitllm.explore.schemas import (
    Ask,
    Brain,
    ImageList,
    JobId,
    JobInfo,
    KnownExchange,
    KnownExchanges,
    Name,
    NsdId,
    Problem,
    RunInfo,
    Use,
)
from bitllm.explore.work import NEEDS_ROI, Decoder, Session

MAX_CONNECTIONS = 200
"""Further connections are answered with 503."""
MAX_BODY_BYTES = 16_384
MAX_QUERY_BYTES = 2_048
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/explore.css": ("explore.css", "text/css; charset=utf-8"),
    "/explore.js": ("explore.js", "text/javascript; charset=utf-8"),
    "/conversation.js": ("conversation.js", "text/javascript; charset=utf-8"),
    "/drawing.js": ("drawing.js", "text/javascript; charset=utf-8"),
}
_POLL_S = 0.03
_MOST_EXCHANGES = 40
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem}}


def listen(host: str, port: int) -> socket:
    """A listening socket, opened before anything slow is loaded; with port 0 any free port."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port: expected 0 to 65535, found {port}; choose another")
    try:
        return create_server(
            (host, port), family=AF_INET6 if ":" in host else AF_INET, backlog=MAX_CONNECTIONS
        )
    except OSError as error:
        raise ConfigError(
            f"--port: expected a free port on {host}, found {port} in use ({error.strerror}); choose another, or 0"
        ) from None


def serve(
    session: Session,
    listening: socket,
    *,
    host: str,
    names: tuple[str, ...] = (),
    tell: Callable[[str], None] = print,
) -> None:
    """Serve the page until interrupted; ``names`` are further host names of this server."""
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


def create_app(session: Session, queue: DecodeQueue, *, hosts: Collection[str]) -> FastAPI:
    """The application; it responds only to host names in ``hosts``."""
    app = FastAPI(
        title="bitllm explore",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        responses={422: {"model": Problem}},
    )
    app.add_middleware(Guards, hosts=hosts)
    app.add_exception_handler(RequestValidationError, _invalid)
    _serve_page(app)
    _serve_choices(app, session)
    _serve_decodes(app, session, queue)
    return app


def _invalid(_: Request, error: Exception) -> JSONResponse:
    """One line about the first invalid value. The value itself is not returned: NaN is not valid JSON."""
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": ""}
    place = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{place}: {first['msg']}"[:500]}, status_code=422)


def _serve_page(app: FastAPI) -> None:
    folder = files("bitllm.explore") / "page"
    for address, (name, kind) in _PAGE.items():
        content = (folder / name).read_bytes()

        def send(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind)

        app.add_api_route(address, lambda send=send: send(), include_in_schema=False, response_model=None)


def _serve_choices(app: FastAPI, session: Session) -> None:
    @app.get("/api/run")
    def run() -> RunInfo:
        """What can be chosen."""
        return session.info()

    @app.get("/api/subjects/{subject}/images", responses=_NOT_FOUND)
    def images(
        subject: Annotated[Name, Path()],
        use: Use = "test",
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> ImageList:
        """Images of one part of the split that a subject saw."""
        _require_subject(session, subject)
        return session.images(subject, use, offset=offset, limit=limit)

    @app.get("/api/images/{nsd_id}/questions")
    def questions(nsd_id: Annotated[NsdId, Path()]) -> KnownExchanges:
        """Questions about an image that the store has, with their true answers."""
        found = session.exchanges(nsd_id)
        return KnownExchanges(
            total=len(found),
            exchanges=[
                KnownExchange(
                    task=one.task, questions=list(one.questions), answers=[list(a) for a in one.answers]
                )
                for one in found[:_MOST_EXCHANGES]
            ],
        )

    @app.get("/api/subjects/{subject}/brain", responses=_NOT_FOUND)
    def brain(subject: Annotated[Name, Path()]) -> Brain:
        """Coordinates and regions of a subject's voxels."""
        _require_subject(session, subject)
        return session.brain(subject)

    @app.get(
        "/api/pictures/{nsd_id}",
        response_class=Response,
        responses={**_NOT_FOUND, 200: {"content": {"image/png": {}}}},
    )
    def picture(nsd_id: Annotated[NsdId, Path()]) -> Response:
        """The picture of an image, as PNG."""
        if not session.has_pictures or nsd_id not in session.store.stimuli.index:
            raise HTTPException(404, f"the store has no picture {nsd_id}")
        buffer = io.BytesIO()
        Image.fromarray(session.picture(nsd_id)).save(buffer, format="PNG")
        return Response(buffer.getvalue(), media_type="image/png")


def _serve_decodes(app: FastAPI, session: Session, queue: DecodeQueue) -> None:
    def known(job_id: Annotated[JobId, Path()]) -> Job:
        job = queue.get(job_id)
        if job is None:
            raise HTTPException(404, f"there is no decode {job_id} any more")
        return job

    KnownJob = Annotated[Job, Depends(known)]
    full: dict[int | str, dict[str, Any]] = {**_NOT_FOUND, 400: {"model": Problem}, 429: {"model": Problem}}

    @app.post("/api/decodes", status_code=202, responses=full)
    def decode(ask: Ask) -> JobInfo:
        """Request a decode; it is queued."""
        _check(session, ask)
        try:
            return queue.info(queue.submit(ask))
        except QueueFullError:
            raise HTTPException(
                429, "too many decodes wait already; try again in a moment", headers={"Retry-After": "2"}
            ) from None

    @app.get("/api/decodes/{job_id}", responses=_NOT_FOUND)
    def state(job: KnownJob) -> JobInfo:
        """State of a decode."""
        return queue.info(job)

    @app.delete("/api/decodes/{job_id}", responses=_NOT_FOUND)
    def cancel(job: KnownJob) -> JobInfo:
        """Cancel a decode; has no effect if it is finished."""
        queue.cancel(job)
        return queue.info(job)

    @app.get(
        "/api/decodes/{job_id}/events",
        response_class=StreamingResponse,
        responses={**_NOT_FOUND, 200: {"content": {"text/event-stream": {}}}},
    )
    async def events(job: KnownJob, request: Request) -> StreamingResponse:
        """All events of a decode, from its start, as server-sent events."""
        return StreamingResponse(_stream(job, request), media_type="text/event-stream")


async def _stream(job: Job, request: Request) -> AsyncIterator[str]:
    n_sent = 0
    while not await request.is_disconnected():
        is_over = job.is_over  # read before the events, so that none can follow
        new = job.events[n_sent:]
        n_sent += len(new)
        for event in new:
            yield f"data: {json.dumps(event)}\n\n"
        if is_over:
            return
        await asyncio.sleep(_POLL_S)


def _require_subject(session: Session, subject: str) -> None:
    if subject not in session.store.subjects:
        raise HTTPException(404, f"the store has no subject {subject}")


def _check(session: Session, ask: Ask) -> None:
    """Refuse at once a request that could not be decoded."""
    _require_subject(session, ask.subject)
    if ask.system not in session.folders:
        raise HTTPException(404, f"the run has no system {ask.system}")
    rows = session.trials(ask.subject).rows.get(ask.nsd_id)
    if rows is None:
        raise HTTPException(404, f"{ask.subject} has not seen image {ask.nsd_id}")
    if ask.repetition is not None and ask.repetition > len(rows):
        raise HTTPException(404, f"{ask.subject} has seen image {ask.nsd_id} {len(rows)} times")
    if ask.perturbation not in NEEDS_ROI:
        return
    if ask.roi is None:
        raise HTTPException(400, f"to {ask.perturbation} a region, name it in roi")
    try:
        session.roi(ask.subject, ask.roi)
    except BitLlmError:
        raise HTTPException(404, f"{ask.subject} has no voxel in a region of that name") from None


class Guards:
    """Middleware: refuses requests from other sites and large ones, and adds security headers."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS.items()]
            await send(message)

        refused = self._refused(scope)
        body = b""
        if refused is None:
            body, refused = await _whole_body(receive)
        if refused is not None:
            await refused(scope, receive, with_headers)
            return
        await self.app(scope, _replayed(body, receive), with_headers)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        host = host_name(headers.get(b"host", b"").decode("latin-1"))
        if host not in self.hosts:
            return _problem(421, "this server answers to its own name only; open the address that it printed")
        origin = headers.get(b"origin")
        if origin is not None and host_name(urlsplit(origin.decode("latin-1")).netloc) not in self.hosts:
            return _problem(403, "the request comes from a page of another site")
        if len(scope.get("query_string", b"")) > MAX_QUERY_BYTES:
            return _problem(414, f"the query is longer than {MAX_QUERY_BYTES} bytes")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return _problem(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        return None


def host_name(value: str) -> str:
    """The name in ``name:port`` or ``[address]:port``, in lower case."""
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    return value.partition(":")[0].lower()


async def _whole_body(receive: Receive) -> tuple[bytes, JSONResponse | None]:
    """The body, read up to the limit: chunked requests do not state their size."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body, None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return b"", _problem(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return body, None


def _replayed(body: bytes, receive: Receive) -> Receive:
    parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return parts.pop() if parts else await receive()

    return again


def _problem(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=status)
