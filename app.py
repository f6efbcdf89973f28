"""The playground: `python app.py [CHECKPOINT]`, then open the address it prints."""

import contextlib
import gc
import os
import subprocess
import sys
from unittest import mock

# The loops that write texts are compiled, where they are not on disk yet, while this process imports the rest.
compiling = subprocess.Popen([sys.executable, "-m", "deepseek.kernels.warmup", *sys.argv[1:2]])

gc.disable()  # until the page is built: nothing of it goes away, and looking again and again takes a tenth of the start
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the page works without any network
# After every event gradio would sum up its last 10,000 in a table, for a page of figures that nobody opens here.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**12))
with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  (on a ZeroGPU Space, where it must come before torch)

with mock.patch("inspect.getfile", side_effect=OSError):  # without it gradio looks after editor stubs for a second
    import gradio as gr
from starlette.middleware import Middleware

from deepseek.ui import page
from deepseek.ui.generation import NUM_THREADS, NUM_WORKERS
from deepseek.ui.server import gradio_patches, model_registry, request_validation

SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
THEME = gr.themes.Default(
    primary_hue="blue",
    font=SYSTEM_FONTS,  # gradio's own are fetched from a CDN
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
).set(  # gradio's own are too faint to read on white: 1.9 and 3.7 to 1
    body_text_color_subdued="*neutral_500",
    input_placeholder_color="*neutral_500",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)


def main():
    try:
        model, tokenizer = model_registry.open_model(sys.argv[1] if len(sys.argv) > 1 else model_registry.DEMO)
    except ValueError as error:
        sys.exit(f"error: {error}")

    def compiled():
        compiling.wait()
        model_registry.start_workers(NUM_WORKERS, NUM_THREADS, model.name_or_path)

    gradio_patches.apply_patches()
    demo = page.build(model, tokenizer, compiled)
    gc.freeze()
    gc.enable()
    demo.queue(max_size=64).launch(
        theme=THEME,
        css_paths="assets/style.css",
        footer_links=["api"],
        max_file_size="1gb",
        _frontend=False,  # no look at the page by gradio, which ends the app where the first answer takes over 3 seconds
        state_session_capacity=500,  # pages whose place gradio remembers; 10,000 if nothing is said
        max_threads=100,  # each text that is being written waits in one
        app_kwargs={"middleware": [Middleware(request_validation.RequestValidation)]},
    )


if __name__ == "__main__":
    main()
