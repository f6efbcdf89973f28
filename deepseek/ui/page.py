"""The whole page: tabs side by side, and what one tab tells another."""

import os
import sys

import gradio as gr
import torch

from deepseek.sampling import SamplingParams
from deepseek.trace import trace
from deepseek.ui import about, api, attention, compare, controls, experts, layers, playground, subject

TITLE = "DeepSeek playground"
INTRO = "# Watch a mixture of experts think, token by token\nA small DeepSeek-style language model, running here."


def build(model, tokenizer) -> gr.Blocks:
    """The page over one model. A first text is generated now, so that every panel has something to show."""
    # Jobs on the model share the cores: with a thread a core for each of them they would wait for one another.
    sys.setswitchinterval(
        0.0005
    )  # the engine gives up the interpreter at every tensor operation and wants it back soon
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // playground.PLACES))
    params = SamplingParams(**controls.PRESETS[controls.FIRST], max_new_tokens=64, seed=7)
    *_, first = playground.generate(model, tokenizer, playground.EXAMPLES[0], params)
    seen = trace(model, tokenizer, first.text)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as demo:
        gr.Markdown(INTRO)
        with gr.Tabs():
            with gr.Tab("Playground"):
                generation, ended = playground.build(demo, model, tokenizer, first)
            with gr.Tab("Experts") as experts_tab:
                experts_view = experts.build(model, tokenizer, first.text, seen)
            with gr.Tab("Attention") as attention_tab:
                attention_view = attention.build(model, tokenizer, first.text, seen)
            with gr.Tab("Layers") as layers_tab:
                layers_view = layers.build(model, tokenizer, first.text, seen)
            with gr.Tab("Compare"):
                compare.build(model, tokenizer, first.prompt)
            with gr.Tab("Model"):
                about.build(model)
        for view, tab in ((experts_view, experts_tab), (attention_view, attention_tab), (layers_view, layers_tab)):
            subject.connect(view, tab, first.text, generation, ended)
        api.build(model, tokenizer)
    return demo
