"""The whole page: tabs side by side, and what one tab tells another."""

from collections.abc import Callable

import gradio as gr
import torch

from deepseek.inference.sampling import SamplingParams
from deepseek.interpret.trace import trace
from deepseek.ui import api
from deepseek.ui.components import sampler_controls, text_view
from deepseek.ui.generation import EXAMPLES, NUM_THREADS, generate
from deepseek.ui.server import validated_blocks
from deepseek.ui.tabs import attention, compare, experts, intervene, layers, long_text, model_info, playground, train

TITLE = "DeepSeek playground"
TABS = ("Playground", "Experts", "Attention", "Layers", "Intervene", "Compare", "Train", "Model")
INTRO = "# Watch a mixture of experts think, token by token"


def build(model, tokenizer, compiled: Callable[[], None]) -> gr.Blocks:
    """The page over one model. A first text is written now, so that every panel has something to show.

    `compiled` returns once that can begin; what shows no text is made before.
    """
    torch.set_num_threads(NUM_THREADS)
    with validated_blocks.ValidatedBlocks(title=TITLE, analytics_enabled=False) as demo:
        checkpoint = gr.State(model.name_or_path)  # the path of the one that this reader looks at, on all tabs
        gr.Markdown(INTRO)
        which = gr.Markdown(model_info.headline(model.name_or_path), elem_id="which")
        with gr.Tabs() as tabs:
            tab = {name: gr.Tab(name) for name in TABS}
            with tab["Train"]:
                train.build(demo, tab["Train"], tabs)
            with tab["Model"]:
                model_info.build(model, tab["Model"], checkpoint, which)
            readings = long_text.examples(model, tokenizer)
            compiled()
            params = SamplingParams(
                **sampler_controls.PRESETS[sampler_controls.DEFAULT_PRESET], max_new_tokens=64, seed=7
            )
            *_, first = generate(model, tokenizer, EXAMPLES[0], params)
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
            text_view.connect(view, tab[name], first.text, checkpoint, generation, ended)
        api.build(model.name_or_path)
        api.build()
    return demo
