"""The addresses of the page: what can be chosen, pictures, places of voxels, and decodes with their events.

Browsers name things only by ids, which are looked up in the run and the store; no path that comes from a request is
ever opened.
"""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Collection
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from bitllm import __version__
from bitllm.errors import BitLlmError
from bitllm.explore.guards import Guards
from bitllm.explore.jobs import DecodeQueue, Job, QueueFullError
from bitllm.explore.perturbation import NEEDS_ROI
from bitllm.explore.schemas import Ask, Brain, ImageList, JobId, JobInfo, Name, NsdId, Problem, RunInfo, Use
from bitllm.explore.session import Session

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/explore.css": ("explore.css", "text/css; charset=utf-8"),
    "/explore.js": ("explore.js", "text/javascript; charset=utf-8"),
    "/drawing.js": ("drawing.js", "text/javascript; charset=utf-8"),
}
_POLL_S = 0.03
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": Problem}}


def create_app(session: Session, queue: DecodeQueue, *, hosts: Collection[str]) -> FastAPI:
    """The application.

    Parameters
    ----------
    session
        The run and the store that are shown.
    queue
        Makes the decodes.
    hosts
        Names by which the server may be called.
    """
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
    """One line on what does not fit; what came is not sent back, it may be no JSON value (NaN)."""
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
        """Images of one use that a subject saw."""
        _require_subject(session, subject)
        return session.images(subject, use, offset=offset, limit=limit)

    @app.get("/api/subjects/{subject}/brain", responses=_NOT_FOUND)
    def brain(subject: Annotated[Name, Path()]) -> Brain:
        """Where a subject's voxels lie."""
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
        """Ask for a decode; it waits for those before it."""
        _check(session, ask)
        try:
            return queue.info(queue.submit(ask))
        except QueueFullError:
            raise HTTPException(
                429, "too many decodes wait already; try again in a moment", headers={"Retry-After": "2"}
            ) from None

    @app.get("/api/decodes/{job_id}", responses=_NOT_FOUND)
    def state(job: KnownJob) -> JobInfo:
        """Where a decode stands."""
        return queue.info(job)

    @app.delete("/api/decodes/{job_id}", responses=_NOT_FOUND)
    def cancel(job: KnownJob) -> JobInfo:
        """End a decode; harmless if it is over."""
        queue.cancel(job)
        return queue.info(job)

    @app.get(
        "/api/decodes/{job_id}/events",
        response_class=StreamingResponse,
        responses={**_NOT_FOUND, 200: {"content": {"text/event-stream": {}}}},
    )
    async def events(job: KnownJob, request: Request) -> StreamingResponse:
        """Everything that is told about a decode, from its start, as server-sent events."""
        return StreamingResponse(_told(job, request), media_type="text/event-stream")


async def _told(job: Job, request: Request) -> AsyncIterator[str]:
    n_sent = 0
    while not await request.is_disconnected():
        is_over = job.is_over  # asked before the events are read: none comes after
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
    """Refuse at once what could only fail later."""
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
