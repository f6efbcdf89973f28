"""How the page reports an error to its user."""

import html
from contextlib import contextmanager

import gradio as gr


def user_error(error: Exception) -> gr.Error:
    """The error's sentence without a traceback, escaped since the page shows messages as HTML."""
    return gr.Error(html.escape(str(error), quote=False), print_exception=False)


@contextmanager
def user_errors():
    """Raises gr.Error in place of a ValueError; also a decorator. A gr.Error, which is a ValueError too, stays."""
    try:
        yield
    except gr.Error:
        raise
    except ValueError as error:
        raise user_error(error) from error
