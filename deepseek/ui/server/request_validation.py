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
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from deepseek.settings.aliases import rename

MAX_BODY_BYTES = 2**20  # ten times the largest of the page's own
MAX_DEPTH = 32  # of nested lists and objects
LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0", "::1")
PROXY = "/gradio_api/proxy="  # fetches from other Spaces
UPLOAD = "/gradio_api/upload"  # takes a file, with a size limit of its own
BODY_MODELS = {"queue/join": PredictBody, "run": PredictBody, "api": PredictBody, "call": SimplePredictBody,
               "cancel": CancelBody, "reset": ResetBody}  # fmt: skip
POST_PATH = re.compile(r"/gradio_api/(?:(queue/join|cancel|reset)|(call/v2|call|run|api)/([^/]+))/?")
ANSWER_PATH = re.compile(r"/gradio_api/call/(?:v2/)?[^/]+/([^/]+)/?")


class RequestValidation:
    """ASGI middleware that refuses, in one sentence, what is no request of this page or its endpoints."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope, body = dict(scope), None
        headers, path = MutableHeaders(scope=scope), scope["path"]
        has_body = scope["method"] == "POST" and path.rstrip("/") != UPLOAD
        try:
            if is_foreign(headers) and not (path == "/" and scope["method"] in ("GET", "HEAD")):
                raise HTTPException(403, f"Origin is {headers['origin']!r:.80}; it must be the address of this page.")
            match = POST_PATH.fullmatch(path)
            if path.startswith(PROXY) or not path.isprintable() or has_body and not match:
                raise HTTPException(404, f"path is {path!r:.80}; it must be one of this app's.")
            if has_body:
                value = parse_json(await read_body(Request(scope, receive)))
                body = validated_body(scope["app"].get_blocks(), match, value)
                headers["content-type"], headers["content-length"] = "application/json", str(len(body))
        except ClientDisconnect:
            return None
        except HTTPException as error:
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


def is_foreign(headers: Headers) -> bool:
    """Whether a browser says that the page of another site makes this request."""
    origin = headers.get("origin")
    if not origin or headers.get("sec-fetch-site") == "same-origin":  # the browser knows, behind a proxy too
        return False
    hosts = [headers[name] for name in ("host", "x-forwarded-host") if headers.get(name)]
    try:
        site = urlsplit(origin)  # "null", from a page without an address, has no host
        local = site.hostname in LOCAL_HOSTS and any(urlsplit(f"//{host}").hostname in LOCAL_HOSTS for host in hosts)
    except ValueError:  # not an address
        return True
    return site.netloc not in hosts and not local


async def read_body(request: Request) -> bytes:
    """The body of a request. Raises HTTPException for one above MAX_BODY_BYTES, ClientDisconnect if its sender left.

    Too large a body is read to its end, since a sender that is cut off does not read the reason, but not kept.
    """
    size, parts = 0, []
    async for part in request.stream():
        size += len(part)
        parts = [*parts, part] if size <= MAX_BODY_BYTES else []
    if size > MAX_BODY_BYTES:
        raise HTTPException(413, f"the body has {size:,} bytes; it must have {MAX_BODY_BYTES:,} at most.")
    return b"".join(parts)


def parse_json(body: bytes):
    """The JSON value of a body. Raises HTTPException."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is {body[:40]!r}; it must be JSON ({str(error)[:80]}).") from error
    if is_deeper(value, MAX_DEPTH):
        message = f"the body has lists and objects nested more than {MAX_DEPTH} deep; it must have fewer."
        raise HTTPException(400, message)
    return value


def is_deeper(value, depth: int) -> bool:
    """Whether a JSON value nests more than `depth` lists and objects."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth == 0 and bool(items) or depth > 0 and any(is_deeper(item, depth - 1) for item in items)


def validated_body(blocks, match: re.Match, body) -> bytes:
    """The JSON that gradio gets: `body` if its path takes it, without invalid characters. Raises HTTPException."""
    route, endpoint = match[1] or match[2], match[3]
    if not isinstance(body, dict):
        raise HTTPException(422, f"the body is {body!r:.60}; it must be an object.")
    public = {fn.api_name: fn for fn in blocks.fns.values() if fn.api_visibility == "public"}
    by_index = route == "queue/join" or route in ("run", "api") and body.get("fn_index") is not None
    if endpoint and not by_index and endpoint not in public:
        raise HTTPException(404, f"endpoint is {endpoint!r:.60}; it must be one of {', '.join(sorted(public))}.")
    if route == "call/v2":
        body = validated_arguments(public[endpoint], body)
    else:
        try:
            BODY_MODELS[route].model_validate(body)
        except ValidationError as invalid:
            error = invalid.errors()[0]
            field, rule = error["loc"][0], error["msg"].replace("Input should", "it must")
            if error["type"] == "missing":
                raise HTTPException(422, f"{field} is missing; the body must have it.") from invalid
            raise HTTPException(422, f"{field} is {error['input']!r:.60}; {rule}.") from invalid
    if by_index:
        body = validated_event(blocks, body)
    # JSON can hold half a surrogate pair, which is no character and cannot be encoded.
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def validated_arguments(fn, body: dict) -> dict:
    """An endpoint's arguments by their present names. Raises HTTPException for an unknown or missing one."""
    parameters = inspect.signature(fn.fn).parameters
    body = rename(body)
    for name in body:
        if name not in parameters:
            names = ", ".join(parameters)
            raise HTTPException(422, f"{name[:60]!r} is no argument of /{fn.api_name}; it must be one of {names}.")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in body:
            raise HTTPException(422, f"{name} is missing; /{fn.api_name} must have it.")
    return body


def validated_event(blocks, body: dict) -> dict:
    """A page event's body, as one event. Raises HTTPException for an unknown event or the wrong event data."""
    index, data = body.get("fn_index"), body.get("event_data")
    if index not in blocks.fns:
        raise HTTPException(404, f"fn_index is {index!r:.60}; it must be that of one of this page's events.")
    if not blocks.fns[index].collects_event_data:
        data = None  # such as the file of an upload, which is among the inputs too
    elif not isinstance(data, dict) or "gradio.FileData" in str(data):
        message = f"event_data is {data!r:.60}; it must be an object for this event, without a file in it."
        raise HTTPException(422, message)
    return {**body, "event_data": data, "batched": False}
