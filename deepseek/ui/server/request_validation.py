"""What a request must be before gradio sees it: from this page, of a size that can be read, and of the shape it has here.

gradio answers a body of another shape with a traceback in the log and nothing that helps its sender. The values
themselves are looked at behind the door: by `checked` for the page's events, by the endpoints for theirs.
"""

import inspect
import json
import re
from urllib.parse import urlsplit

from gradio.data_classes import CancelBody, PredictBody, ResetBody, SimplePredictBody
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

LARGEST = 2**20  # bytes of a JSON body; the page's own stay below a tenth of that
DEEPEST = 32  # lists and objects in one another
LOCAL = ("localhost", "127.0.0.1", "0.0.0.0", "::1")
PROXY = "/gradio_api/proxy="  # fetches from other Spaces, for pages that show one
UPLOAD = "/gradio_api/upload"  # has a limit of its own, and no JSON
SHAPES = {"queue": PredictBody, "run": PredictBody, "api": PredictBody, "call": SimplePredictBody,
          "cancel": CancelBody, "reset": ResetBody}  # fmt: skip
ANSWERS = re.compile(r"/gradio_api/call/(?:v2/)?[^/]+/([^/]+)/?")
POSTS = re.compile(r"/gradio_api/(?:(queue)/join|(cancel|reset)|(run|api|call)/(v2/)?([^/]+))/?")


class RequestValidation:
    """ASGI middleware: refuses in one sentence what is no request of this page or of its endpoints."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, path, body = Headers(scope=scope), scope["path"], None
        try:
            if foreign(headers) and not (path == "/" and scope["method"] in ("GET", "HEAD")):
                raise RequestError(403, f"Origin is {headers['origin']!r:.80}; it must be the address of this page.")
            if path.startswith(PROXY) or not path.isprintable():
                raise RequestError(404, f"path is {path!r:.80}; it must be one of this app's.")
            if scope["method"] == "POST" and path.rstrip("/") != UPLOAD:
                body = await whole(receive)
                if body is None:
                    return None  # the sender has gone
                body = entered(scope["app"].get_blocks(), path, parsed(body))
                rest = [header for header in scope["headers"] if header[0] not in (b"content-type", b"content-length")]
                described = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
                scope = {**scope, "headers": [*rest, *described]}
        except RequestError as refused:
            return await JSONResponse({"detail": refused.detail}, refused.status_code)(scope, receive, send)
        started = False

        async def once():
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body}, None
            return message

        async def noted(message):
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, once, noted)
        except RuntimeError as error:
            # An event that is not there: gradio has said so in the stream, then raises the 404 that it cannot send.
            if not (started and isinstance(error.__cause__, HTTPException)):
                raise
            await send({"type": "http.response.body", "body": b""})
        finally:
            if answered := ANSWERS.fullmatch(path):
                forget(scope["app"].get_blocks(), answered[1])


def forget(blocks, event: str) -> None:
    """Drops what gradio keeps for good of a call of an endpoint, to it a session named like its event."""
    blocks.state_holder.session_data.pop(event, None)
    blocks.state_holder.time_last_used.pop(event, None)
    if not blocks._queue.pending_event_ids_session.get(event):  # nothing more will be told of it
        blocks._queue.pending_event_ids_session.pop(event, None)
        blocks._queue.pending_messages_per_session.pop(event, None)


class RequestError(HTTPException):
    """A request that is not let in: a status and one sentence."""


def foreign(headers: Headers) -> bool:
    """Whether a browser says that another site's page makes this request."""
    origin = headers.get("origin")
    if not origin or headers.get("sec-fetch-site") == "same-origin":  # a browser's word, true behind any proxy
        return False
    hosts = [headers[name] for name in ("host", "x-forwarded-host") if headers.get(name)]
    try:
        site = urlsplit(origin)  # of "null", which a page without an address sends, it has no host
        local = site.hostname in LOCAL and any(urlsplit(f"//{host}").hostname in LOCAL for host in hosts)
    except ValueError:  # no address
        return True
    return site.netloc not in hosts and not local


async def whole(receive) -> bytes | None:
    """The body of a request; None if its sender left. One that is too large is heard out, since a sender that is cut off
    does not read why, but not kept.
    """
    size, parts, more = 0, [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        size += len(part := message.get("body", b""))
        parts = [*parts, part] if size <= LARGEST else []
        more = message.get("more_body", False)
    if size > LARGEST:
        raise RequestError(413, f"the body has {size:,} bytes; it must have {LARGEST:,} at most.")
    return b"".join(parts)


def parsed(body: bytes):
    """The JSON value of a body. Raises Refused."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is {body[:40]!r}; it must be JSON ({str(error)[:80]}).") from error
    if deeper(value, DEEPEST):
        raise RequestError(
            400, f"the body has lists and objects in one another, more than {DEEPEST} deep; it must have fewer."
        )
    return value


def deeper(value, most: int) -> bool:
    """Whether a JSON value holds more than `most` lists and objects in one another."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return most == 0 and bool(inside) or most > 0 and any(deeper(one, most - 1) for one in inside)


def entered(blocks, path: str, body) -> bytes:
    """The body that gradio gets: `body` if it is what `path` takes, less what is no character. Raises Refused."""
    found = POSTS.fullmatch(path)
    if not found:
        raise RequestError(404, f"path is {path!r:.80}; it must be one of this app's.")
    kind, named = found[1] or found[2] or found[3], found[5]
    if not isinstance(body, dict):
        raise RequestError(422, f"the body is {body!r:.60}; it must be an object.")
    public = {fn.api_name: fn for fn in blocks.fns.values() if fn.api_visibility == "public"}
    by_index = kind == "queue" or kind in ("run", "api") and body.get("fn_index") is not None
    if named and not by_index and named not in public:
        raise RequestError(404, f"endpoint is {named!r:.60}; it must be one of {', '.join(sorted(public))}.")
    if found[4]:
        check_names(public[named], body)
    else:
        try:
            SHAPES[kind].model_validate(body)
        except ValidationError as error:
            raise RequestError(422, told(error.errors()[0])) from error
    if by_index:
        check_event(blocks, body)
    # Half a surrogate pair is no character: JSON can hold it, but nothing that comes after can write it.
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def told(problem: dict) -> str:
    """A pydantic error as a sentence."""
    field = problem["loc"][0]
    if problem["type"] == "missing":
        return f"{field} is missing; the body must have it."
    return f"{field} is {problem['input']!r:.60}; {problem['msg'].replace('Input should', 'it must')}."


def check_names(fn, body: dict) -> None:
    """Refuses arguments that an endpoint does not have, and the want of one that has no default."""
    parameters = inspect.signature(fn.fn).parameters
    for name in body:
        if name not in parameters:
            known = ", ".join(parameters)
            raise RequestError(422, f"{name[:60]!r} is no argument of /{fn.api_name}; it must be one of {known}.")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in body:
            raise RequestError(422, f"{name} is missing; /{fn.api_name} must have it.")


def check_event(blocks, body: dict) -> None:
    """Refuses an event that the page does not have, or that lacks what its kind tells; `body` becomes that of one event."""
    if body.get("fn_index") not in blocks.fns:
        raise RequestError(
            404, f"fn_index is {body.get('fn_index')!r:.60}; it must be that of one of this page's events."
        )
    told, wanted = body.get("event_data"), blocks.fns[body["fn_index"]].collects_event_data
    if wanted and not isinstance(told, dict) or "gradio.FileData" in str(told):
        raise RequestError(
            422, f"event_data is {told!r:.60}; it must be an object for this event, without a file in it."
        )
    body["batched"] = False
