"""A workaround for faults of gradio 6.31's page, which searches too much, loses events and answers, and never rests.

- js/core/src/init.svelte.ts: `find_node_by_id` walks the whole tree, through Svelte's proxies, once for each output of each
  event; `find_attached_events` goes through all events for each component. With the thousand components and three hundred
  events of this page that is most of what the browser does. Here both look into an index, so the page shows its first text in
  half the time (`python tests/measure/page_load.py`). Upstream: https://github.com/gradio-app/gradio/issues/12314.
- js/core/src/dependency.ts: what waits for an event of `trigger_mode="always_last"` is run with the data (which token was
  clicked) of the event it waited for, and not at all if that was refused. Here it has its own data, and is run.
- client/js/src/utils/stream.ts: the server closes the stream of answers when no event is pending. An event that the page sends
  just then counts on that stream, and its answer is not read until the next event. Here the page opens another.
- The same: what comes for an event goes through a timer while the window is visible, and not while it is hidden. So a part of a
  text overtook the one before as the window was left, and was shown as what it changes. Here all go one by one.
- client/js/src/client.ts: after a restart of the app a page goes on as if it had just been opened. Here its session is named
  after the app's start, and the page is loaded again when the app refuses its events for that (`ValidatedBlocks`).
- client/js/src/utils/submit.ts: an event that was answered before the page knew its id is counted as pending for good. Each open
  stream holds one of the six connections that a browser opens to a host, so a few windows would keep each other waiting.
- js/statustracker/static/index.svelte: one that leaves the page while its event is pending, as that of the loading page does,
  counts the time in every frame for as long as the window is open, which takes 7 % of a core.
"""

from pathlib import Path

import gradio
from starlette.responses import Response

from deepseek.ui.server.validated_blocks import GONE_TITLE

FOLDER = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
REPLACEMENTS = {  # by the files' names, as {gradio's text: ours}
    "core-*.js": {
        "function Z(e,t){if(e.id===t)return e;if(e.children)for(let n of e.children){let e=Z(n,t);if(e)return e}return null}":
        "function Z(e,t){let n=(Z.trees??=new WeakMap).get(e);if(!n?.has(t)){Z.trees.set(e,n=new Map);"
        "let add=e=>{n.set(e.id,e),e.children?.forEach(add)};add(e)}return n.get(t)??null}",
        "let n=t.filter(t=>t.targets.find(([t])=>t===e.id)).map(t=>{let n=t.targets.find(([t])=>t===e.id);"
        "return n?n[1]:null}).filter(Boolean);return e.props":
        "if(this.indexed!==t){this.indexed=t,this.events=new Map;for(let n of t){let seen=new Set;for(let[e,t]of n.targets)"
        "seen.has(e)||(seen.add(e),this.events.has(e)||this.events.set(e,[]),t&&this.events.get(e).push(t))}}"
        "let n=this.events.get(e.id)??[];return e.props",
    },
    "Blocks-*.js": {
        "client;queue=new Set;": "client;queue=new Map;",
        "if(t===`defer`){this.queue.add(r.id);continue}":
        "if(t===`defer`){this.queue.set(r.id,{type:`fn`,fn_index:r.id,event_data:e.event_data,target_id:e.target_id});continue}",
        "this.queue.has(r.id)&&(this.queue.delete(r.id),this.dispatch(e))}}catch{": "this.run_deferred(r.id)}}catch{",
        "this.dispatch({type:`fn`,fn_index:e,event_data:null,target_id:l})})}}}}create(e){":
        "this.dispatch({type:`fn`,fn_index:e,event_data:null,target_id:l})}),this.run_deferred(r.id)}}}}"
        "run_deferred(e){let t=this.queue.get(e);this.queue.delete(e),t&&this.dispatch(t)}create(e){",
    },
    "index-*.js": {
        "_resolve_heartbeat(e){this.config=e,":
        "_resolve_heartbeat(e){this.config=e,e.started&&!this.session_hash.startsWith(e.started)&&"
        "(this.session_hash=e.started+`-`+this.session_hash),",
        "if(s.msg===`close_stream`){wt(r,o.abort_controller);return}":
        "if(s.msg===`close_stream`){wt(r,o.abort_controller),t.size&&o.open_stream();return}",
        "let n=e[c];typeof window<`u`&&typeof document<`u`&&document.visibilityState!==`hidden`?setTimeout(n,0,s):n(s)}":
        "deliver(o,e[c],s)}",
        "function wt(e,t){": "function deliver(e,t,n){e.delivered=(e.delivered||Promise.resolve()).then(()=>"
        "document.visibilityState!==`hidden`&&new Promise(e=>setTimeout(e))).then(()=>{"
        f"n.output?.title===`{GONE_TITLE}`&&"
        "setTimeout(()=>location.reload(),2e3),t(n)})}function wt(e,t){",
        "E in g&&(g[E].forEach(e=>t(e)),delete g[E]),v[E]=t,y.add(E),h.open||await this.open_stream()":
        "v[E]=t,y.add(E),E in g&&(g[E].forEach(e=>{e.msg===`process_completed`&&y.delete(E),deliver(this,t,e)}),delete g[E]),"
        "h.open||y.size&&await this.open_stream()",
    },
    "statustracker-*.js": {"/1e3),W&&ze()})}": "/1e3),W&&U!==null&&ze()})}"},  # U is its element
}  # fmt: skip


def patched_scripts() -> dict[str, str]:
    """{path: text} of the patched scripts of gradio's page. Raises RuntimeError if they are not those this is written for."""
    scripts = {}
    for names, replacements in REPLACEMENTS.items():
        for old, new in replacements.items():
            texts = {f"/assets/{file.name}": file.read_text("utf-8") for file in FOLDER.glob(names)} | scripts
            found = [path for path, text in texts.items() if text.count(old) == 1]
            if len(found) != 1:
                raise RuntimeError(
                    f"{FOLDER} is not that of gradio 6.31, for which frontend_patch.py is written; check it."
                )
            scripts[found[0]] = texts[found[0]].replace(old, new)
    return scripts


class PatchedFrontend:
    """ASGI middleware that answers the requests for these scripts."""

    def __init__(self, app):
        self.app, self.scripts = app, patched_scripts()

    async def __call__(self, scope, receive, send):
        app = self.app
        if scope["type"] == "http":
            path = scope["path"][max(0, scope["path"].rfind("/assets/")) :]  # behind a proxy a prefix may come first
            if path in self.scripts:
                app = Response(
                    self.scripts[path], media_type="text/javascript", headers={"cache-control": "max-age=3600"}
                )
        await app(scope, receive, send)
