"""What every request passes before it is looked at: its host, its origin, its size.

The page is for the person at this machine. A name that is not ours in ``Host`` is how a foreign web page reaches a
server on 127.0.0.1 (DNS rebinding), a foreign ``Origin`` is how it makes a visitor's browser ask for it.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class Guards:
    """Refuse what does not come from the page itself, or is too large; add the headers that keep it so.

    Parameters
    ----------
    app
        What is guarded.
    hosts
        Names by which this server may be called.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
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
            return _problem(403, "asked by a page of another site")
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
    """The body, read up to the limit: one that is sent in pieces does not say its size before."""
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
