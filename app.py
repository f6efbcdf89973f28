"""The playground: `python app.py [CHECKPOINT]`, then open the address it prints."""

import argparse
import sys
from pathlib import Path

from deepseek.ui.server import startup

parser = argparse.ArgumentParser(
    description="Open the playground.",
    epilog="GRADIO_SERVER_PORT and GRADIO_SERVER_NAME set its address.",
)
parser.add_argument("checkpoint", nargs="?", help="a folder, a run, a checkpoint of a run or a Hub id (the demo)")
checkpoint = parser.parse_args().checkpoint if __name__ == "__main__" else None
compiling = startup.begin([checkpoint] if checkpoint else [])

import gradio as gr
from starlette.middleware import Middleware

from deepseek.ui import page
from deepseek.ui.server import gradio_patches, model_registry
from deepseek.ui.server.frontend_patch import PatchedFrontend
from deepseek.ui.server.request_validation import RequestValidation

SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
THEME = gr.themes.Default(
    primary_hue="blue",
    font=SYSTEM_FONTS,  # gradio's own are fetched from a CDN
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
).set(  # gradio's own have a contrast of 1.9 and 3.7 to 1 on white, too little to read
    body_text_color_subdued="*neutral_500",
    input_placeholder_color="*neutral_500",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)


def main():
    try:
        path = model_registry.requested_path(checkpoint or model_registry.DEMO)
        for status in model_registry.opening(path, path):
            print(status, end="\r", flush=True)  # each over the one before
        model, tokenizer = model_registry.open_model(path)
    except ValueError as error:
        sys.exit(f"error: {error}")

    def start_workers():
        compiling.wait()
        model_registry.start_workers(model)

    gradio_patches.apply_patches()
    demo = page.build(model, tokenizer, start_workers)
    startup.enable_gc()
    demo.queue(max_size=64).launch(
        theme=THEME,
        css_paths=["assets/style.css", "assets/walk.css"],
        js=Path("assets/inputs.js").read_text("utf-8"),
        head=f"<script>{Path('assets/selection.js').read_text('utf-8')}</script>",
        footer_links=["api"],
        max_file_size="1gb",
        app_kwargs={"middleware": [Middleware(RequestValidation), Middleware(PatchedFrontend)]},
        **startup.LAUNCH_OPTIONS,
    )


if __name__ == "__main__":
    main()
