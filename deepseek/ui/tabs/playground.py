"""The Playground tab: a prompt, the sampler's settings, the text token by token, and the selected token."""

from dataclasses import asdict
from math import inf

import gradio as gr

from deepseek.ui.components import sampler_controls, share, token_detail
from deepseek.ui.components.token_strip import event_int, token_strip
from deepseek.ui.components.view import figure
from deepseek.ui.errors import user_error, user_errors
from deepseek.ui.generation import EXAMPLES, GENERATION_QUEUE, MODEL_QUEUE, UNQUEUED, Generation, generate
from deepseek.ui.plots.sampling import entropy_and_temperature
from deepseek.ui.server import model_registry


def build(demo, checkpoint: gr.State, first: Generation):
    """Draws the tab, which shows `first`. Returns (State with the user's Generation, the events after which one has ended).

    Every sample comes from the user's `checkpoint`; when that changes the prompt is sampled again.
    """
    state = gr.State(first, time_to_live=3600)
    gr.Markdown("The model continues your prompt, one token at a time. Click a token to see how it was sampled.")
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
                plot = entropy_and_temperature(first.tokens)
                along = figure(plot, "along-the-text", elem_classes="wide", elem_id="along")
            with gr.Accordion("the text as a table", open=False):
                table = token_detail.text_table(first)
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                seed = gr.Number(first.params.seed, label="seed", info="same seed, same text")
                locked = gr.Checkbox(False, label="keep this seed", info="otherwise each text gets a new one")
            # Outside any accordion: a closed one does not mount what is in it.
            saved = gr.BrowserState({}, storage_key="deepseek-playground-presets", secret="presets")
            preset, controls = sampler_controls.sampler_controls(saved=saved, parse_saved=share.valid_presets)
            share.build(demo, state, saved, preset, controls, checkpoint.value)

    inputs, outputs = [seed, locked, *controls.values()], [strip, stats, seed, state, back]
    details = [*detail, along, table]

    def skip(components):
        return [gr.skip() for _ in components]

    def show_selected(generation):
        """Details of the selected token, again if another one was selected meanwhile: a newer answer may come first."""
        index = None
        while index != generation.selected:
            index = generation.selected
            values = token_detail.show(generation, index)
        return values

    def show_details(generation):
        return [*show_selected(generation), entropy_and_temperature(generation.tokens), token_detail.rows(generation)]

    def stream(generations):
        first_update = True
        for generation in generations:
            # The State holds the growing object itself: after a Stop it has what there is, and the token selected meanwhile.
            fixed = [generation.params.seed, generation, gr.update(visible=bool(generation.parent))]
            yield [generation.strip, generation.stats, *(fixed if first_update else skip(fixed))]
            first_update = False

    def run(path, prompt, seed, locked, *values):
        params = sampler_controls.to_params(controls, values, seed, locked)
        yield from stream(generate(*model_registry.get_model(path), prompt, params))

    def run_again(path, last, *values):
        yield from run(path, last.prompt, *values)

    def run_other_checkpoint(path, last, *values):
        if last.checkpoint == path:  # a link's sample
            yield skip(outputs)
        else:
            yield from run(path, *values)

    def branch(last, event: gr.EventData):
        token, index = event_int(event, "id"), min(last.selected, len(last.tokens) - 1)
        if token not in {candidate.id for candidate in last.tokens[index].candidates}:
            raise user_error(ValueError(f"candidate is {token!r:.40}; it must be one of the table's."))
        forced = {position: id for position, id in last.forced_tokens.items() if position < index} | {index: token}
        yield from stream(generate(*model_registry.get_model(last.checkpoint), last.prompt, last.params, forced, last))

    def leave_branch(generation):
        parent = generation.parent or generation
        return parent.strip, parent.stats, parent.params.seed, parent, gr.update(visible=bool(parent.parent))

    quiet = dict(api_visibility="private", show_progress="hidden")
    options = dict(outputs=outputs, **quiet, **GENERATION_QUEUE)
    events = [
        *(event(run, [checkpoint, prompt, *inputs], **options) for event in (go.click, prompt.submit)),
        again.click(run_again, [checkpoint, state, *inputs], **options),
        checkpoint.change(run_other_checkpoint, [checkpoint, state, prompt, *inputs], **options),
        detail[2].branch(branch, state, **options),
    ]
    events.append(stop.click(None, cancels=events, **UNQUEUED))
    events.append(back.click(leave_branch, state, outputs, **UNQUEUED))
    for event in events:
        event.then(show_details, state, details, **UNQUEUED)

    def select(generation, event: gr.EventData):
        index = event_int(event, "index")
        if index not in range(len(generation.tokens)):
            return skip(detail)
        generation.selected = index
        return show_selected(generation)

    # trigger_mode: with "always_last" gradio would lose the index
    strip.select(select, state, [*detail], show_progress="hidden", trigger_mode="multiple", **UNQUEUED)

    def open_model(request):
        path = request.query_params.get("checkpoint", checkpoint.value)
        return model_registry.open_requested(path, checkpoint.value)

    @user_errors()
    def restore(request: gr.Request):
        """Puts a link's prompt, seed and settings into the page."""
        if "prompt" not in request.query_params:
            return skip([prompt, *inputs])
        text, params, _ = share.from_query(request.query_params, inf)
        values = {**asdict(params), "stop": "\n".join(params.stop)}
        return [text, params.seed or 0, params.seed is not None, *(values[name] for name in controls)]

    def run_link(request: gr.Request):
        if "prompt" not in request.query_params:
            yield skip(outputs)
            return
        with user_errors():
            model, tokenizer = open_model(request)
            link = share.from_query(request.query_params, model.config.vocab_size)
        yield from stream(generate(model, tokenizer, *link))

    def show_link_details(request: gr.Request, generation):
        return show_details(generation) if "prompt" in request.query_params else skip(details)

    @user_errors()
    def open_link_checkpoint(request: gr.Request):
        return open_model(request)[0].name_or_path if "checkpoint" in request.query_params else gr.skip()

    # Queued, since only then the page shows a refusal.
    linked = demo.load(restore, None, [prompt, *inputs], **quiet).success(run_link, None, **options)
    linked.then(show_link_details, state, details, **UNQUEUED)
    # Last: all tabs follow the user's checkpoint, and by now the link's sample is there.
    linked.success(open_link_checkpoint, None, checkpoint, **quiet, **MODEL_QUEUE)
    return state, [*events, linked]
