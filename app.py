"""The playground: `python app.py [CHECKPOINT]`, then open the address it prints."""

import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # the page works without any network

import gradio as gr

from deepseek.ui import page, playground, served

SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
THEME = gr.themes.Default(
    primary_hue="blue",
    font=SYSTEM_FONTS,  # gradio's own are fetched from a CDN
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
)


def main():
    try:
        model, tokenizer = served.opened(sys.argv[1] if len(sys.argv) > 1 else served.DEMO)
    except ValueError as error:
        sys.exit(f"error: {error}")
    demo = page.build(model, tokenizer)
    served.start_workers(playground.PLACES, playground.THREADS, model.name_or_path)
    demo.queue(max_size=32).launch(theme=THEME, css_paths="assets/style.css", footer_links=["api"], max_file_size="1gb")


if __name__ == "__main__":
    main()
