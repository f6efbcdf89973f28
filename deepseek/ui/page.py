"""The whole page: tabs side by side, and what one tab tells another."""

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
    playground,
    subject,
    train,
    train_api,
)

TITLE = "DeepSeek playground"
INTRO = "# Watch a mixture of experts think, token by token"


def build(model, tokenizer) -> gr.Blocks:
    """The page over one model. A first text is generated now, so that every panel has something to show."""
    torch.set_num_threads(playground.THREADS)
    params = SamplingParams(**controls.PRESETS[controls.FIRST], max_new_tokens=64, seed=7)
    *_, first = playground.generate(model, tokenizer, playground.EXAMPLES[0], params)
    seen = trace(model, tokenizer, first.text)
    with checked.Checked(title=TITLE, analytics_enabled=False) as demo:
        checkpoint = gr.State(model.name_or_path)  # the path of the one that this reader looks at, on all tabs
        gr.Markdown(INTRO)
        which = gr.Markdown(about.headline(model.name_or_path), elem_id="which")
        with gr.Tabs() as tabs:
            with gr.Tab("Playground"):
                generation, ended = playground.build(demo, checkpoint, first)
            with gr.Tab("Experts") as experts_tab:
                experts_view = experts.build(model, tokenizer, first.text, seen, checkpoint)
            with gr.Tab("Attention") as attention_tab:
                attention_view = attention.build(model, tokenizer, first.text, seen, checkpoint)
            with gr.Tab("Layers") as layers_tab:
                layers_view = layers.build(model, tokenizer, first.text, seen, checkpoint)
            with gr.Tab("Intervene") as intervene_tab:
                intervene.build(model, first.prompt, checkpoint, intervene_tab)
            with gr.Tab("Compare"):
                compare.build(model, tokenizer, first.prompt, checkpoint)
            with gr.Tab("Train") as train_tab:
                train.build(demo, train_tab, tabs)
            with gr.Tab("Model") as model_place:
                about.build(model, model_place, checkpoint, which)
        for view, tab in ((experts_view, experts_tab), (attention_view, attention_tab), (layers_view, layers_tab)):
            subject.connect(view, tab, first.text, checkpoint, generation, ended)
        api.build(model.name_or_path)
        train_api.build()
    return demo
