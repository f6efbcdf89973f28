"""Chat templates, rendered in a process of their own with limits of time, memory and length.

A chat template is a program that comes with a checkpoint. transformers runs it in jinja2's ImmutableSandboxedEnvironment,
where it reaches nothing but the messages; but a sandbox bounds neither its loops nor its texts, so the process does.
"""

import json
import os
import select
import subprocess
import sys
import threading
from contextlib import suppress

TIMEOUT_S = 5  # for one conversation
START_TIMEOUT_S = 60  # the process imports transformers
MAX_MEMORY_BYTES = 2**30  # of the process; only where the system has such a limit: macOS has none
MAX_CHARACTERS = 2**22  # of a rendered conversation
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # others would reserve memory

_process: subprocess.Popen | None = None  # started when first needed; it ends with this one
_lock = threading.Lock()


def render_template(template: str, messages: list[dict], variables: dict) -> str:
    """The text that a chat template makes of messages, with `variables` in its reach, as transformers renders it.

    Raises ValueError for a template that is wrong, refuses the messages, or passes a limit.
    """
    request = {**variables, "chat_template": template, "conversations": [messages]}
    with _lock:
        answer = _ask(json.dumps(request).encode() + b"\n")
    if "text" in answer:
        return answer["text"]
    raise ValueError(f"messages cannot be rendered by the checkpoint's chat template: {answer['error'].rstrip('.')}.")


def _ask(line: bytes) -> dict:
    """The process's answer to a request; it is started if there is none, and ended if it takes too long."""
    global _process
    if _process is None or _process.poll() is not None:
        command = [sys.executable, "-P", __file__]  # -P: the modules beside this file are no libraries
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        _process = subprocess.Popen(command, **pipes, env=os.environ | ONE_THREAD)
        if _answer(START_TIMEOUT_S) is None:
            return {"error": "its process did not start"}
    with suppress(BrokenPipeError):
        _process.stdin.write(line)
        _process.stdin.flush()
    return _answer(TIMEOUT_S) or {
        "error": f"it takes over {TIMEOUT_S} seconds or {MAX_MEMORY_BYTES >> 30} GiB of memory"
    }


def _answer(timeout_s: float) -> dict | None:
    """The next answer of the process; None, and the process has ended, if there is none in time."""
    ready, _, _ = select.select([_process.stdout], [], [], timeout_s)
    if line := ready and _process.stdout.readline():
        return json.loads(line)
    _process.kill()
    _process.wait()
    return None


def _serve() -> None:
    """Answers a line of JSON for each line read, until there are no more."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        try:
            (text,), _ = render_jinja_template(**json.loads(line))
            error = f"it writes {len(text):,} characters, more than {MAX_CHARACTERS:,}"
            answer = {"text": text} if len(text) <= MAX_CHARACTERS else {"error": error}
        except MemoryError:
            answer = {"error": f"it takes over {MAX_MEMORY_BYTES >> 30} GiB of memory"}
        except Exception as exception:
            answer = {"error": " ".join(str(exception).split())[:200] or type(exception).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
