"""What a request must be before gradio sees it: from this page, of limited size, and of the shape that its path takes.

gradio answers a body of another shape with a traceback in the log and no reason to its sender. The values in the body are
checked later: by `validated_blocks` for the page's events, by the endpoints for theirs.
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

from deepseek.settings.aliases import ALIASES

MAX_BODY_BYTES = 2**20  # ten times the largest of the page's own
MAX_DEPTH = 32  # of nested lists and objects
LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0", "::1")
PROXY = "/gradio_api/proxy="  # fetches from other Spaces
UPLOAD = "/gradio_api/upload"  # takes a file, with a size limit of its own
BODY_MODELS = {"queue": PredictBody, "run": PredictBody, "api": PredictBody, "call": SimplePredictBody,
               "cancel": CancelBody, "reset": ResetBody}  # fmt: skip
POST_PATH = re.compile(
    r"/gradio_api/(?:(?P<queue>queue)/join|(?P<control>cancel|reset)"
    r"|(?P<call>run|api|call)/(?P<by_name>v2/)?(?P<endpoint>[^/]+))/?"
)
ANSWER_PATH = re.compile(r"/gradio_api/call/(?:v2/)?[^/]+/([^/]+)/?")


class RequestError(HTTPException):
    """A refused request: a status and one sentence."""


class RequestValidation:
    """ASGI middleware that refuses, in one sentence, what is no request of this page or its endpoints."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, path, body = Headers(scope=scope), scope["path"], None
        try:
            if is_foreign(headers) and not (path == "/" and scope["method"] in ("GET", "HEAD")):
                raise RequestError(403, f"Origin is {headers['origin']!r:.80}; it must be the address of this page.")
            if path.startswith(PROXY) or not path.isprintable():
                raise unknown_path(path)
            if scope["method"] == "POST" and path.rstrip("/") != UPLOAD:
                body = await read_body(receive)
                if body is None:
                    return None
                body = validated_body(scope["app"].get_blocks(), path, parse_json(body))
                rest = [header for header in scope["headers"] if header[0] not in (b"content-type", b"content-length")]
                described = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
                scope = {**scope, "headers": [*rest, *described]}
        except RequestError as error:
            return await JSONResponse({"detail": error.detail}, error.status_code)(scope, receive, send)
        started = False

        async def receive_validated():
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body}, None
            return message

        async def track_start(message):
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive_validated, track_start)
        except RuntimeError as error:
            # For an unknown event gradio reports the error in the stream, then raises a 404 that it can no longer send.
            if not (started and isinstance(error.__cause__, HTTPException)):
                raise
            await send({"type": "http.response.body", "body": b""})
        finally:
            if answer := ANSWER_PATH.fullmatch(path):
                forget(scope["app"].get_blocks(), answer[1])


def forget(blocks, event: str) -> None:
    """Drops what gradio would keep forever of an endpoint's call, for it a session named like the event."""
    blocks.state_holder.session_data.pop(event, None)
    blocks.state_holder.time_last_used.pop(event, None)
    if not blocks._queue.pending_event_ids_session.get(event):
        blocks._queue.pending_event_ids_session.pop(event, None)
        blocks._queue.pending_messages_per_session.pop(event, None)


def unknown_path(path: str) -> RequestError:
    """The refusal of a path that the app does not have."""
    return RequestError(404, f"path is {path!r:.80}; it must be one of this app's.")


def is_foreign(headers: Headers) -> bool:
    """Whether a browser says that the page of another site makes this request."""
    origin = headers.get("origin")
    if (
        not origin or headers.get("sec-fetch-site") == "same-origin"
    ):  # the browser's own verdict, right behind any proxy
        return False
    hosts = [headers[name] for name in ("host", "x-forwarded-host") if headers.get(name)]
    try:
        site = urlsplit(origin)  # "null", from a page without an address, has no host
        local = site.hostname in LOCAL_HOSTS and any(urlsplit(f"//{host}").hostname in LOCAL_HOSTS for host in hosts)
    except ValueError:  # not an address
        return True
    return site.netloc not in hosts and not local


async def read_body(receive) -> bytes | None:
    """The body of a request, None if its sender disconnected. Raises RequestError for one above MAX_BODY_BYTES.

    Too large a body is read to its end, since a sender that is cut off does not read the reason, but not kept.
    """
    size, parts, more = 0, [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        size += len(part := message.get("body", b""))
        parts = [*parts, part] if size <= MAX_BODY_BYTES else []
        more = message.get("more_body", False)
    if size > MAX_BODY_BYTES:
        raise RequestError(413, f"the body has {size:,} bytes; it must have {MAX_BODY_BYTES:,} at most.")
    return b"".join(parts)


def parse_json(body: bytes):
    """The JSON value of a body. Raises RequestError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is {body[:40]!r}; it must be JSON ({str(error)[:80]}).") from error
    if is_deeper(value, MAX_DEPTH):
        raise RequestError(
            400, f"the body has lists and objects nested more than {MAX_DEPTH} deep; it must have fewer."
        )
    return value


def is_deeper(value, depth: int) -> bool:
    """Whether a JSON value nests more than `depth` lists and objects."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth == 0 and bool(items) or depth > 0 and any(is_deeper(item, depth - 1) for item in items)


def validated_body(blocks, path: str, body) -> bytes:
    """The JSON that gradio gets: `body` if it is what `path` takes, without invalid characters. Raises RequestError."""
    match = POST_PATH.fullmatch(path)
    if not match:
        raise unknown_path(path)
    route, endpoint = match["queue"] or match["control"] or match["call"], match["endpoint"]
    if not isinstance(body, dict):
        raise RequestError(422, f"the body is {body!r:.60}; it must be an object.")
    public = {fn.api_name: fn for fn in blocks.fns.values() if fn.api_visibility == "public"}
    by_index = route == "queue" or route in ("run", "api") and body.get("fn_index") is not None
    if endpoint and not by_index and endpoint not in public:
        raise RequestError(404, f"endpoint is {endpoint!r:.60}; it must be one of {', '.join(sorted(public))}.")
    if match["by_name"]:
        body = validated_arguments(public[endpoint], body)
    else:
        try:
            BODY_MODELS[route].model_validate(body)
        except ValidationError as error:
            raise RequestError(422, sentence(error.errors()[0])) from error
    if by_index:
        body = validated_event(blocks, body)
    # JSON can hold half a surrogate pair, which is no character and cannot be encoded.
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def sentence(error: dict) -> str:
    """A pydantic error as a sentence."""
    field = error["loc"][0]
    if error["type"] == "missing":
        return f"{field} is missing; the body must have it."
    return f"{field} is {error['input']!r:.60}; {error['msg'].replace('Input should', 'it must')}."


def validated_arguments(fn, body: dict) -> dict:
    """An endpoint's arguments by their present names. Raises RequestError for an unknown or missing one."""
    parameters = inspect.signature(fn.fn).parameters
    renamed = {old: ALIASES[old] for old in body if old not in parameters and ALIASES.get(old) in parameters}
    body = {renamed.get(name, name): value for name, value in body.items() if renamed.get(name) not in body}
    for name in body:
        if name not in parameters:
            names = ", ".join(parameters)
            raise RequestError(422, f"{name[:60]!r} is no argument of /{fn.api_name}; it must be one of {names}.")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in body:
            raise RequestError(422, f"{name} is missing; /{fn.api_name} must have it.")
    return body


def validated_event(blocks, body: dict) -> dict:
    """A page event's body, as one event. Raises RequestError for an unknown event or the wrong event data."""
    index, data = body.get("fn_index"), body.get("event_data")
    if index not in blocks.fns:
        raise RequestError(404, f"fn_index is {index!r:.60}; it must be that of one of this page's events.")
    if blocks.fns[index].collects_event_data and not isinstance(data, dict) or "gradio.FileData" in str(data):
        message = f"event_data is {data!r:.60}; it must be an object for this event, without a file in it."
        raise RequestError(422, message)
    return {**body, "batched": False}
