"""The Attention tab: ranges of tokens, and the size of an update."""

import gradio as gr
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from deepseek import trace
from deepseek.ui.tabs import attention


def test_an_attention_update_of_512_tokens_is_under_a_megabyte(demo):
    model, tokenizer = demo
    seen = trace(model, tokenizer, list(range(100, 612)))
    note, lines, *figures, _ = attention.draw(seen, layers=(0, 5), heads=(0, 8))
    assert note == "512 tokens"
    assert len(lines) + sum(len(figure.to_json()) for figure in figures) < 1e6


@pytest.mark.parametrize("text", ["0-3", "3-1", "1-70", "x", "1", "-", "1-2-3"])
def test_a_bad_range_of_tokens_is_refused(text):
    with pytest.raises(gr.Error, match="tokens are .* within 1-60"):
        attention.token_range(text, 60)


def test_a_range_left_over_from_a_longer_text_is_dropped():
    assert attention.fitting_range("40-70", 60) == "" and attention.fitting_range("40-60", 60) == "40-60"


def test_a_range_of_tokens_is_counted_from_one():
    assert attention.token_range(" 2 – 5 ", 60) == (1, 5) and attention.token_range("", 60) == (0, 60)
    assert attention.token_range("", 1000) == (0, 512) and attention.token_range("489-1000", 1000) == (488, 1000)
    with pytest.raises(gr.Error, match="of 512 tokens at most"):
        attention.token_range("1-513", 1000)


def test_a_model_of_one_layer_and_one_head_has_sliders_that_gradio_draws(tokenizer):
    """A slider from 0 to 0 was refused, and the tab with it."""
    shape = dict(vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    one = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    for properties in attention.sliders(one):
        slider = gr.Slider(0, step=1, **properties)
        assert slider.minimum < slider.maximum and slider.value == 0 and not slider.interactive
    note, _, *figures, token = attention.draw(trace(one, tokenizer, [5, 9, 17]))
    assert note == "3 tokens" and None not in figures and token == 2
