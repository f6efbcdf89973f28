"""A workaround for gradio 6.31, whose page searches all its components for each one that it updates.

js/core/src/init.svelte.ts: `find_node_by_id` walks the whole tree, through Svelte's proxies, once for each output of each
event; `find_attached_events` goes through all events for each component. With the thousand components and three hundred
events of this page that is most of what the browser does. Here both look into an index, so the page shows its first text in
half the time (`python tests/measure/page_load.py`). Upstream: https://github.com/gradio-app/gradio/issues/12314.
"""

from pathlib import Path

import gradio
from starlette.responses import Response

FOLDER = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
REPLACEMENTS = {
    "function Z(e,t){if(e.id===t)return e;if(e.children)for(let n of e.children){let e=Z(n,t);if(e)return e}return null}":
    "function Z(e,t){let n=(Z.trees??=new WeakMap).get(e);if(!n?.has(t)){Z.trees.set(e,n=new Map);"
    "let add=e=>{n.set(e.id,e),e.children?.forEach(add)};add(e)}return n.get(t)??null}",
    "let n=t.filter(t=>t.targets.find(([t])=>t===e.id)).map(t=>{let n=t.targets.find(([t])=>t===e.id);"
    "return n?n[1]:null}).filter(Boolean);return e.props":
    "if(this.indexed!==t){this.indexed=t,this.events=new Map;for(let n of t){let seen=new Set;for(let[e,t]of n.targets)"
    "seen.has(e)||(seen.add(e),this.events.has(e)||this.events.set(e,[]),t&&this.events.get(e).push(t))}}"
    "let n=this.events.get(e.id)??[];return e.props",
}  # fmt: skip


def patched_script() -> tuple[str, str]:
    """(path, text) of the script of gradio's page, with the index. Raises RuntimeError if it is not the one this is for."""
    [file] = FOLDER.glob("core-*.js")
    text = file.read_text("utf-8")
    for old, new in REPLACEMENTS.items():
        if text.count(old) != 1:
            raise RuntimeError(
                f"{file} is not that of gradio 6.31, for which frontend_patch.py is written; check it first."
            )
        text = text.replace(old, new)
    return f"/assets/{file.name}", text


class PatchedFrontend:
    """ASGI middleware that answers the request for that script."""

    def __init__(self, app):
        self.app = app
        self.path, self.text = patched_script()

    async def __call__(self, scope, receive, send):
        app = self.app
        if scope["type"] == "http" and scope["path"].endswith(self.path):  # behind a proxy a prefix may come first
            app = Response(self.text, media_type="text/javascript", headers={"cache-control": "max-age=3600"})
        await app(scope, receive, send)
