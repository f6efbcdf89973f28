"""How the page reports an error to its user."""

import html

import gradio as gr


def user_error(error: Exception) -> gr.Error:
    """The error's sentence without a traceback, escaped since the page shows messages as HTML."""
    return gr.Error(html.escape(str(error), quote=False), print_exception=False, title="Not possible")
