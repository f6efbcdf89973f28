"""What a user is told when something is refused."""

import html

import gradio as gr


def user_error(error: Exception) -> gr.Error:
    """An error for the reader: its sentence, without a traceback, escaped since the page takes messages for HTML."""
    return gr.Error(html.escape(str(error), quote=False), print_exception=False, title="Not possible")
