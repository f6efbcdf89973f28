"""The Playground tab: a prompt, the sampler, the text token by token, and the selected token."""

from dataclasses import asdict
from math import inf

import gradio as gr

from deepseek.ui.components import sampler_controls, share, token_detail
from deepseek.ui.components.figure import figure
from deepseek.ui.components.token_strip import event_int, token_strip
from deepseek.ui.errors import user_error
from deepseek.ui.generation import EXAMPLES, GENERATION_QUEUE, MODEL_QUEUE, UNQUEUED, Generation, generate
from deepseek.ui.plots.sampling import entropy_and_temperature
from deepseek.ui.server import model_registry


def build(demo, checkpoint: gr.State, first: Generation):
    """Draws the tab, with `first` already in it. Returns (State with the reader's Generation, the events that end one).

    Every text is written by the reader's `checkpoint`; when that changes the prompt is continued anew.
    """
    state = gr.State(first, time_to_live=3600)
    gr.Markdown("The model goes on from your prompt, a token at a time. Click a token to see how it was drawn.")
    prompt = gr.Textbox(first.prompt, label="prompt", lines=2, max_lines=8)
    with gr.Row():
        go = gr.Button("Generate", variant="primary", min_width=120)
        stop = gr.Button("Stop", min_width=120)
        again = gr.Button("Regenerate", min_width=120)
    gr.Examples([[text] for text in EXAMPLES], prompt, label="try", cache_examples=False, api_visibility="private")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            help = "the text, token by token; arrow keys move from one to the next"
            strip = token_strip("strip", "probability", help, first.strip)
            stats = gr.Markdown(first.stats, elem_id="stats")
            back = gr.Button("Back to the text before the branch", size="sm", visible=False)
            detail = token_detail.build(first)
            with gr.Accordion("entropy and temperature along the text", open=False):
                along = figure(
                    entropy_and_temperature(first.tokens), "along-the-text", elem_classes="wide", elem_id="along"
                )
            with gr.Accordion("the text as a table", open=False):
                table = token_detail.text_table(first)
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                seed = gr.Number(first.params.seed, label="seed", info="same seed, same text")
                locked = gr.Checkbox(False, label="keep this seed", info="or draw a new one each time")
            preset, settings = sampler_controls.sampler_controls()
            share.build(demo, state, preset, settings, checkpoint.value)

    def selected(generation):
        """The selected token; drawn anew if another was selected meanwhile, for an answer can overtake one that is newer."""
        index = None
        while index != generation.selected:
            index = generation.selected
            drawn = token_detail.show(generation, index)
        return drawn

    def shown(generation):
        return [*selected(generation), entropy_and_temperature(generation.tokens), token_detail.rows(generation)]

    def run(path, prompt, seed, locked, *values):
        params = sampler_controls.to_params(settings, values, seed, locked)
        yield from streamed(generate(*model_registry.get_model(path), prompt, params))

    def run_again(path, last, seed, locked, *values):
        yield from run(path, last.prompt, seed, locked, *values)

    def run_elsewhere(path, last, prompt, *values):
        """The text of a checkpoint just opened; a link brings its own."""
        if last.checkpoint == path:
            yield [gr.skip() for _ in outputs]
        else:
            yield from run(path, prompt, *values)

    def branch(last, event: gr.EventData):
        chosen, index = event_int(event, "id"), min(last.selected, len(last.tokens) - 1)
        if chosen not in {c.id for c in last.tokens[index].candidates}:
            raise user_error(ValueError(f"candidate is {chosen!r:.40}; it must be one of the table's."))
        forced = {place: token for place, token in last.forced.items() if place < index} | {index: chosen}
        yield from streamed(
            generate(*model_registry.get_model(last.checkpoint), last.prompt, last.params, forced, last)
        )

    def streamed(generations):
        once = True
        for generation in generations:
            # The state holds the object itself, which goes on growing: what there is at a Stop is kept, and so is the
            # token that the reader selects meanwhile.
            fixed = [generation.params.seed, generation, gr.update(visible=bool(generation.parent))]
            yield [generation.strip, generation.stats, *(fixed if once else [gr.skip()] * 3)]
            once = False

    outputs = [strip, stats, seed, state, back]
    options = dict(outputs=outputs, api_visibility="private", show_progress="hidden", **GENERATION_QUEUE)
    inputs = [seed, locked, *settings.values()]
    events = [
        go.click(run, [checkpoint, prompt, *inputs], **options),
        prompt.submit(run, [checkpoint, prompt, *inputs], **options),
        again.click(run_again, [checkpoint, state, *inputs], **options),
        checkpoint.change(run_elsewhere, [checkpoint, state, prompt, *inputs], **options),
        detail[2].branch(branch, state, **options),
    ]
    events.append(stop.click(None, cancels=events, **UNQUEUED))

    def before(generation):
        old = generation.parent or generation
        return old.strip, old.stats, old.params.seed, old, gr.update(visible=bool(old.parent))

    events.append(back.click(before, state, outputs, **UNQUEUED))
    for event in events:
        event.then(shown, state, [*detail, along, table], **UNQUEUED)

    def select(generation, event: gr.EventData):
        index = event_int(event, "index")
        if index not in range(len(generation.tokens)):
            return [gr.skip() for _ in detail]
        generation.selected = index
        return selected(generation)

    last = dict(show_progress="hidden", trigger_mode="multiple", **UNQUEUED)  # always_last would lose the index
    strip.select(select, state, [*detail], **last)

    def restore(request: gr.Request):
        """A link's prompt, seed and settings into the page."""
        if "prompt" not in request.query_params:
            return [gr.skip() for _ in range(3 + len(settings))]
        linked, params, _ = read_link(request, inf)
        values = {**asdict(params), "stop": "\n".join(params.stop)}
        return [linked, params.seed or 0, params.seed is not None, *(values[name] for name in settings)]

    def run_linked(request: gr.Request):
        if "prompt" in request.query_params:
            model, tokenizer = linked_model(request)
            linked, params, forced = read_link(request, model.config.vocab_size)
            yield from streamed(generate(model, tokenizer, linked, params, forced))
        else:
            yield [gr.skip() for _ in outputs]

    def read_link(request, vocabulary):
        try:
            return share.from_query(request.query_params, vocabulary)
        except ValueError as error:
            raise user_error(error) from error

    def linked_model(request):
        try:
            return model_registry.open_requested(
                request.query_params.get("checkpoint", checkpoint.value), checkpoint.value
            )
        except ValueError as error:
            raise user_error(error) from error

    def open_linked(request: gr.Request):
        return linked_model(request)[0].name_or_path if "checkpoint" in request.query_params else gr.skip()

    # In the queue, through which alone a refusal reaches the reader.
    restored = demo.load(restore, None, [prompt, *inputs], api_visibility="private", show_progress="hidden")
    linked = restored.success(run_linked, None, **options)

    def shown_linked(request: gr.Request, generation):
        return shown(generation) if "prompt" in request.query_params else [gr.skip() for _ in range(5)]

    linked.then(shown_linked, state, [*detail, along, table], **UNQUEUED)
    # The last step: with the reader's checkpoint all tabs change, and by now the link's text is there.
    linked.success(open_linked, None, checkpoint, api_visibility="private", show_progress="hidden", **MODEL_QUEUE)
    return state, [*events, linked]
