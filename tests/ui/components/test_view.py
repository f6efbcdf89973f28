"""When a view is redrawn, and with which values."""

import inspect
from functools import partial
from types import SimpleNamespace

import gradio as gr
import pytest

from deepseek.ui.components.shared_outputs import Turns
from deepseek.ui.components.view import connect_view
from deepseek.ui.server import model_registry
from deepseek.ui.server.gradio_patches import Expired

SKIP = gr.skip()


@pytest.fixture
def handlers(monkeypatch):
    """(on request, on opening) of a view of a text, a layer and an unfitted seed; it draws (model's path, text, layer, seed)."""
    monkeypatch.setattr(model_registry, "get_model", lambda path: (SimpleNamespace(path=path, layers=len(path)), None))

    def redraw(turn, model, tokenizer, *values):
        yield [(model.path, *values)]

    with gr.Blocks() as page:
        text, layer, seed, figure, button = gr.Textbox(), gr.Slider(0, 9), gr.Number(), gr.JSON(), gr.Button()
        with gr.Tab("open", elem_id="open-tab") as tab:
            connect_view(
                redraw,
                [text, layer, seed],
                [figure],
                gr.State("demo"),
                [button.click],
                [tab.select],
                num_watched=1,
                fitted=[layer],
                fit=lambda model: [dict(maximum=model.layers, value=1)],
                tab=tab,
            )
    return [partial(listener.fn, Turns(), 1.0) for listener in page.fns.values()]


def test_a_request_redraws_with_the_values_of_the_page(handlers):
    on_request, _ = handlers
    for drawn in (("demo", "hen"), None):
        assert list(on_request(None, drawn, "demo", "fox", 5, 7)) == [
            [("demo", "fox", 5, 7), ("demo", "fox"), SKIP],
            SKIP,
        ]


@pytest.mark.parametrize("drawn", [("demo", "fox"), None, Expired()])
def test_a_request_before_the_view_was_fitted_to_another_checkpoint_fits_it(handlers, drawn):
    """A click on Trace overtakes the event of the tab that opened, whose answer is then dropped."""
    values, _ = handlers[0](None, drawn, "other", "fox", 9, 7)
    assert values == [("other", "fox", 1, 7), ("other", "fox"), gr.update(maximum=5, value=1)]


@pytest.mark.parametrize("is_open, drawn", [(True, ("demo", "fox")), (False, ("old", "fox")), (False, None)])
def test_a_view_that_is_current_or_hidden_stays_as_it_is(handlers, is_open, drawn):
    assert list(handlers[1](is_open, drawn, "demo", "fox", 5, 7)) == [SKIP]


def test_another_text_redraws_with_the_same_choices(handlers):
    expected = [[("demo", "hen", 5, 7), ("demo", "hen"), SKIP], SKIP]
    assert list(handlers[1](True, ("demo", "fox"), "demo", "hen", 5, 7)) == expected


@pytest.mark.parametrize("drawn", [("demo", "fox"), None, Expired()])
def test_another_checkpoint_redraws_with_choices_that_fit_it(handlers, drawn):
    values, _ = handlers[1](True, drawn, "other", "fox", 9, 7)
    assert values == [("other", "fox", 1, 7), ("other", "fox"), gr.update(maximum=5, value=1)]


def test_a_redraw_that_returns_is_sent_once():
    """What a generator yields last gradio sends twice, which for the maps of the Attention tab is 0.6 MB."""
    with gr.Blocks() as page:
        text, figure, button = gr.Textbox("fox"), gr.JSON(), gr.Button()
        connect_view(lambda *_: [1], [text], [figure], gr.State("demo"), [button.click], [text.change], num_watched=1)
    listeners = list(page.fns.values())
    assert len(listeners) == 2 and not any(inspect.isgeneratorfunction(listener.fn) for listener in listeners)
