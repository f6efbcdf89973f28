"""The whole page: its tabs, and what they pass to one another."""

from collections.abc import Callable

import gradio as gr
import torch

from deepseek.inference.sampling import SamplingParams
from deepseek.interpret.trace import trace
from deepseek.ui import api
from deepseek.ui.components import sampler_controls
from deepseek.ui.components.traces import EXAMPLE_TEXTS, trace_long
from deepseek.ui.generation import EXAMPLES, UNQUEUED, generate
from deepseek.ui.server import validated_blocks
from deepseek.ui.server.model_registry import NUM_THREADS
from deepseek.ui.tabs import attention, compare, experts, intervene, layers, model_info, playground, train

TITLE = "DeepSeek playground"
TABS = ("Playground", "Experts", "Attention", "Layers", "Intervene", "Compare", "Train", "Model")
INTRO = "# Watch a mixture of experts think, token by token"


def build(model, tokenizer, start_workers: Callable[[], None]) -> gr.Blocks:
    """The page over one model, with a first sample in it, so that every panel has something to show.

    The tabs that need no sample are built first; `start_workers` is called before the sample and returns once the kernels
    are compiled.
    """
    torch.set_num_threads(NUM_THREADS)
    with validated_blocks.ValidatedBlocks(title=TITLE, analytics_enabled=False) as demo:
        checkpoint = gr.State(model.name_or_path)  # the path of the user's checkpoint, on all tabs
        gr.Markdown(INTRO)
        headline = gr.Markdown(model_info.headline(model.name_or_path), elem_id="which")
        with gr.Tabs() as tabs:
            tab = {name: gr.Tab(name) for name in TABS}
            with tab["Train"]:
                train.build(demo, tab["Train"], tabs)
            with tab["Model"]:
                model_info.build(model, tab["Model"], checkpoint, headline)
            examples = {name: trace_long(model, tokenizer, text) for name, text in EXAMPLE_TEXTS.items()}
            start_workers()
            preset = sampler_controls.PRESETS[sampler_controls.DEFAULT_PRESET]
            *_, first = generate(model, tokenizer, EXAMPLES[0], SamplingParams(**preset, max_new_tokens=64, seed=7))
            first_trace = trace(model, tokenizer, first.text)
            with tab["Playground"]:
                generation, ended = playground.build(demo, checkpoint, first)
            first_text = first.text, first_trace, checkpoint
            with tab["Experts"]:
                boxes = [experts.build(model, *first_text, tab["Experts"], examples)]
            with tab["Attention"]:
                boxes.append(attention.build(model, *first_text, tab["Attention"]))
            with tab["Layers"]:
                boxes.append(layers.build(model, *first_text, tab["Layers"]))
            with tab["Intervene"]:
                intervene.build(model, first.prompt, checkpoint, tab["Intervene"])
            with tab["Compare"]:
                compare.build(model, tokenizer, first.prompt, checkpoint)
        for event in ended:
            event.then(lambda generation: [generation.text] * len(boxes), generation, boxes, **UNQUEUED)
        api.build(model.name_or_path)
    return demo
