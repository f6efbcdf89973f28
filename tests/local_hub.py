"""A small Hugging Face Hub on 127.0.0.1: as much of its API as huggingface_hub, transformers and datasets ask for.

`LocalHub(root)` serves root/models/NAME/MODEL/* and root/datasets/NAME/DATASET/*. `behaviour[repository]` makes one answer
as "gated" (401), "forbidden" (403) or a status such as 500, or send its weights "slow" (64 KiB every 0.1 s).
"""

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

CHUNK_BYTES = 2**16


class LocalHub(ThreadingHTTPServer):
    """A server in a thread of this process; its address is `url`. `requests` lists (method, path)."""

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.behaviour, self.requests = Path(root), {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def commit(self, repository):
        """The hash of the one commit that a repository ("models/NAME/MODEL") has."""
        return hashlib.sha1(repository.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, address.path))
        parts = unquote(address.path).strip("/").split("/")
        api = parts[0] == "api"
        kind, *parts = parts[1:] if api else parts if parts[0] == "datasets" else ["models", *parts]
        name, (verb, revision, *rest) = "/".join(parts[:2]), [*parts[2:], "", ""][: max(2, len(parts) - 2)]
        folder = self.server.root / kind / name
        commit = self.server.commit(f"{kind}/{name}")
        if not folder.is_dir():
            self.refuse(404, "RepoNotFound")
        elif revision not in ("", "main", commit):
            self.refuse(404, "RevisionNotFound")
        elif not api:
            self.send_file(folder / "/".join(rest), name, commit)
        elif verb == "tree" and not (folder / "/".join(rest)).is_dir():
            self.refuse(404, "EntryNotFound")
        elif verb == "tree":
            self.send_json(self.tree(folder, "/".join(rest), parse_qs(address.query)))
        elif verb == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            self.send_json([self.entry(folder, folder / path) for path in wanted if (folder / path).exists()])
        else:
            siblings = [
                {"rfilename": entry["path"], "size": entry["size"]}
                for entry in self.tree(folder, "", {"recursive": ["true"]})
            ]
            about = {"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
            if (folder / "config.json").is_file():  # the Hub shows some of its fields
                config = json.loads((folder / "config.json").read_text())
                about["config"] = {key: config[key] for key in ("model_type", "quantization_config") if key in config}
            self.send_json(about)

    do_HEAD = do_POST = do_GET

    def entry(self, folder, path):
        relative, oid = path.relative_to(folder).as_posix(), hashlib.sha1(path.name.encode()).hexdigest()
        if path.is_dir():
            return {"type": "directory", "oid": oid, "size": 0, "path": relative}
        entry = {"type": "file", "oid": oid, "size": path.stat().st_size, "path": relative}
        if path.suffix in (".safetensors", ".parquet"):
            entry["lfs"] = {"oid": sha256(path), "size": entry["size"], "pointerSize": 134}
        return entry

    def tree(self, folder, under, query):
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        paths = sorted((folder / under).rglob("*") if recursive else (folder / under).iterdir())
        return [self.entry(folder, path) for path in paths if not (recursive and path.is_dir())]

    def send_file(self, file, name, commit):
        behaviour = self.server.behaviour.get(name)
        if behaviour in ("gated", "forbidden"):
            return self.refuse(401 if behaviour == "gated" else 403, "GatedRepo")
        if isinstance(behaviour, int):
            return self.refuse(behaviour)
        if not file.is_file():
            return self.refuse(404, "EntryNotFound")
        size, etag = file.stat().st_size, f'"{sha256(file)}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        first, last, status = 0, size - 1, 200
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start, _, end = wanted[6:].partition("-")
            first, last = int(start), min(last, int(end or last))
            status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{size}"
        self.head(status, last - first + 1, headers)
        if self.command == "HEAD":
            return None
        content = file.read_bytes()[first : last + 1]
        for start in range(0, len(content), CHUNK_BYTES):
            if behaviour == "slow" and len(content) > CHUNK_BYTES:
                time.sleep(0.1)
            self.wfile.write(content[start : start + CHUNK_BYTES])
        return None

    def refuse(self, status, code=""):
        self.send_json({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code} if code else {})

    def send_json(self, value, status=200, headers=None):
        body = json.dumps(value).encode()
        self.head(status, len(body), {"Content-Type": "application/json", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status, length, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()
