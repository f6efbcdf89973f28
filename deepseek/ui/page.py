"""The whole page: its tabs, and what they pass to one another."""

from collections.abc import Callable

import gradio as gr
import torch

from deepseek.data.chat import conversation
from deepseek.inference.sampling import SamplingParams
from deepseek.interpret.trace import trace
from deepseek.ui import api
from deepseek.ui.components import presets
from deepseek.ui.components.tour import tour
from deepseek.ui.components.traces import EXAMPLE_TEXTS, trace_long
from deepseek.ui.components.view import tab_id
from deepseek.ui.generation import EXAMPLES, QUICK_QUEUE, Generation, generate
from deepseek.ui.server import validated_blocks
from deepseek.ui.server.model_registry import NUM_THREADS
from deepseek.ui.tabs import (
    attention,
    compare,
    experts,
    intervene,
    layers,
    model_info,
    playground,
    train,
    walk,
    what_experts_do,
)

TITLE = "DeepSeek playground"
TABS = (
    "Playground",
    "Walk",
    "Experts",
    "What experts do",
    "Attention",
    "Layers",
    "Intervene",
    "Compare",
    "Train",
    "Model",
)
INTRO = "# Watch a mixture of experts think, token by token"


def give_text(generation: Generation, given: str, *texts: str) -> list:
    """The new `given`, and the updates of the tabs' `texts`: the sample's text, but in place of the one `given` before, or of
    none; what the user wrote stays, and all of it if the sample has expired.
    """
    if not generation:
        return gr.skip()
    return [generation.text, *(generation.text if text in ("", given) else gr.skip() for text in texts)]


def build(model, tokenizer, start_workers: Callable[[], None]) -> gr.Blocks:
    """The page over one model, with a first sample in it, so that every panel has something to show.

    The tabs that need no sample are built first; `start_workers` is called before the sample and returns once the kernels
    are compiled.
    """
    torch.set_num_threads(NUM_THREADS)
    with validated_blocks.ValidatedBlocks(title=TITLE, analytics_enabled=False) as demo:
        checkpoint = gr.State(model.name_or_path)  # the path of the user's checkpoint, on all tabs
        kept = gr.BrowserState({}, storage_key="deepseek-playground-presets", secret="presets")  # the user's presets
        with gr.Row(elem_id="title"):
            gr.Markdown(INTRO)
            tour()
            headline = gr.Markdown(model_info.headline(model.name_or_path), elem_id="which")
        with gr.Tabs():
            tab = {name: gr.Tab(name, elem_id=tab_id(name)) for name in TABS}
            with tab["Train"]:
                train.build(demo, tab["Train"])
            with tab["Model"]:
                model_info.build(demo, model, tab["Model"], checkpoint, headline)
            examples = {name: trace_long(model, tokenizer, text) for name, text in EXAMPLE_TEXTS.items()}
            start_workers()
            preset = presets.PRESETS[presets.DEFAULT_PRESET]
            prompt = EXAMPLES["try"][0]
            params = SamplingParams(**preset, max_new_tokens=64, seed=1)
            *_, first = generate(model, tokenizer, conversation(tokenizer, prompt), params)
            first_trace = trace(model, tokenizer, first.ids)
            with tab["Playground"]:
                generation, ended, interventions = playground.build(demo, checkpoint, kept, first)
            first_text = generation, first_trace, checkpoint
            with tab["Walk"]:
                texts = [walk.build(generation, checkpoint, tab["Walk"])]
            with tab["Experts"]:
                texts.append(experts.build(model, *first_text, tab["Experts"], examples))
            with tab["What experts do"]:
                what_experts_do.build(model, checkpoint, tab["What experts do"])
            with tab["Attention"]:
                texts.append(attention.build(model, *first_text, tab["Attention"]))
            with tab["Layers"]:
                texts.append(layers.build(model, *first_text, tab["Layers"]))
            with tab["Intervene"]:
                intervene.build(model, generation, checkpoint, kept, tab["Intervene"], interventions)
            with tab["Compare"]:
                compare.build(model, tokenizer, prompt, checkpoint, kept)
        given = gr.State(first.text)
        boxes, watches = zip(*texts)
        for event in ended:
            event.then(give_text, [generation, given, *boxes], [given, *boxes], **QUICK_QUEUE)
        changes = [given.change, checkpoint.change]
        gr.on(changes, lambda *sample: [repr(hash(sample))] * len(watches), [given, checkpoint], watches, **QUICK_QUEUE)
        api.build(model.name_or_path)
    return demo
