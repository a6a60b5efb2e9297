"""The server: three files, one request that computes, and limits on all that a stranger could send."""

import asyncio
import html
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..datasets import DataError

BINARY = 'application/octet-stream'  # other pages may not send this type here: their browser asks first, in vain
HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src "
    "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        bytes: of an upload.
        waiting: requests that wait while one is computed; more are told to come again.
        seconds: for an upload to arrive.
    """

    bytes: int = 20 * 2**20
    waiting: int = 8
    seconds: float = 30.0


class Refusal(Exception):
    """An answer other than 200, with a sentence for the user."""

    def __init__(self, status: int, sentence: str, **headers: str):
        super().__init__(sentence)
        self.status, self.headers = status, {name.replace('_', '-'): value for name, value in headers.items()}


class Queue:
    """One at a time, in the order of coming, and not too many."""

    def __init__(self, waiting: int):
        self.most, self.inside, self.turn = 1 + waiting, 0, asyncio.Lock()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the queue; ``turn`` is the head of it."""
        if self.inside >= self.most:
            raise Refusal(503, f'{self.inside} images are waiting already: try again in a moment', Retry_After='5')
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


def make_app(
    view: Callable[[bytes], dict], title: str, threshold: float, limits: Limits | None = None, hosts=('*',)
) -> Starlette:
    """The web page as an ASGI application.

    Args:
        view: from the bytes of an upload to what the page shows, as a :class:`~mmdet_ddetr.web.Viewer`; a DataError is
            told to the user. It is called in a thread, never twice at once.
        title: of the page, plain text.
        threshold: score that the page's slider begins with.
        limits: None: the usual ones.
        hosts: names under which the server may be asked: without them a page of another site could read the answers,
            by letting its own name point to this machine. ``'*'`` allows all.
    """
    limits = limits or Limits()
    queue = Queue(limits.waiting)
    about = json.dumps(dict(threshold=threshold, bytes=limits.bytes))
    values = dict(title=html.escape(title), about=html.escape(about))
    page = _read('page.html')
    for name, value in values.items():
        page = page.replace(f'{{{{{name}}}}}', value)

    async def detect(request: Request) -> Response:
        async with queue.place():
            data = await _body(request, limits)
            async with queue.turn:
                if await request.is_disconnected():
                    return Response(status_code=499)
                try:
                    found = await run_in_threadpool(view, data)
                except DataError as error:
                    raise Refusal(422, f'This file cannot be used: {error}.') from None
                except MemoryError:
                    raise Refusal(413, 'There is not enough memory for this image.') from None
        return JSONResponse(found, headers=HEADERS)

    async def refuse(request: Request, refusal: Refusal) -> Response:
        return JSONResponse(dict(error=str(refusal)), refusal.status, HEADERS | refusal.headers)

    async def fail(request: Request, error: Exception) -> Response:
        return JSONResponse(dict(error='The detector failed; the console says why.'), 500, HEADERS)

    def file(text: str, kind: str) -> Callable[[Request], Response]:
        return lambda request: Response(text, media_type=kind, headers=HEADERS)

    return Starlette(
        routes=[
            Route('/', file(page, 'text/html')),
            Route('/page.css', file(_read('page.css'), 'text/css')),
            Route('/page.js', file(_read('page.js'), 'text/javascript')),
            Route('/detect', detect, methods=['POST']),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={Refusal: refuse, Exception: fail},
    )


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding='utf-8')


async def _body(request: Request, limits: Limits) -> bytes:
    """The uploaded file, which is no larger than allowed and does not take for ever."""
    if request.headers.get('Content-Type') != BINARY:
        raise Refusal(415, f'expected a file as {BINARY}')
    # No 'Connection: close' here: what still comes is dropped, and a browser sees the answer.
    too_large = Refusal(413, f'The file has more than {limits.bytes / 2**20:g} MiB.')
    length = request.headers.get('Content-Length', '')
    if length.isdecimal() and int(length) > limits.bytes:
        raise too_large

    async def read() -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > limits.bytes:
                raise too_large
        return bytes(data)

    try:
        return await asyncio.wait_for(read(), limits.seconds)
    except asyncio.TimeoutError:
        raise Refusal(408, f'The file was not here after {limits.seconds:g} s.', Connection='close') from None
    except ClientDisconnect:
        raise Refusal(400, 'The upload was broken off.') from None
