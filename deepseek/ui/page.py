"""The whole page: tabs side by side, and what one tab tells another."""

from collections.abc import Callable

import gradio as gr
import torch

from deepseek.sampling import SamplingParams
from deepseek.trace import trace
from deepseek.ui import (
    about,
    api,
    attention,
    checked,
    compare,
    controls,
    experts,
    intervene,
    layers,
    longer,
    playground,
    subject,
    train,
    train_api,
)

TITLE = "DeepSeek playground"
TABS = ("Playground", "Experts", "Attention", "Layers", "Intervene", "Compare", "Train", "Model")
INTRO = "# Watch a mixture of experts think, token by token"


def build(model, tokenizer, compiled: Callable[[], None]) -> gr.Blocks:
    """The page over one model. A first text is written now, so that every panel has something to show.

    `compiled` returns once that can begin; what shows no text is made before.
    """
    torch.set_num_threads(playground.THREADS)
    with checked.Checked(title=TITLE, analytics_enabled=False) as demo:
        checkpoint = gr.State(model.name_or_path)  # the path of the one that this reader looks at, on all tabs
        gr.Markdown(INTRO)
        which = gr.Markdown(about.headline(model.name_or_path), elem_id="which")
        with gr.Tabs() as tabs:
            tab = {name: gr.Tab(name) for name in TABS}
            with tab["Train"]:
                train.build(demo, tab["Train"], tabs)
            with tab["Model"]:
                about.build(model, tab["Model"], checkpoint, which)
            readings = longer.examples(model, tokenizer)
            compiled()
            params = SamplingParams(**controls.PRESETS[controls.FIRST], max_new_tokens=64, seed=7)
            *_, first = playground.generate(model, tokenizer, playground.EXAMPLES[0], params)
            seen = trace(model, tokenizer, first.text)
            with tab["Playground"]:
                generation, ended = playground.build(demo, checkpoint, first)
            with tab["Experts"]:
                views = {"Experts": experts.build(model, first.text, seen, readings, checkpoint)}
            with tab["Attention"]:
                views["Attention"] = attention.build(model, tokenizer, first.text, seen, checkpoint)
            with tab["Layers"]:
                views["Layers"] = layers.build(model, tokenizer, first.text, seen, checkpoint)
            with tab["Intervene"]:
                intervene.build(model, first.prompt, checkpoint, tab["Intervene"])
            with tab["Compare"]:
                compare.build(model, tokenizer, first.prompt, checkpoint)
        for name, view in views.items():
            subject.connect(view, tab[name], first.text, checkpoint, generation, ended)
        api.build(model.name_or_path)
        train_api.build()
    return demo
