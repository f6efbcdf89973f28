"""The Playground tab: a prompt, the sampler's settings, the text token by token, and the selected token."""

from dataclasses import asdict
from math import inf

import gradio as gr
from starlette.datastructures import QueryParams

from deepseek.ui.components import branches, chat, presets, sampler_controls, share, token_detail, why_not
from deepseek.ui.components.board import board
from deepseek.ui.components.intervention_box import interventions_box, read_interventions
from deepseek.ui.components.shared_outputs import SharedOutputs
from deepseek.ui.components.token_strip import event_int, token_strip
from deepseek.ui.components.view import figure
from deepseek.ui.errors import user_error, user_errors
from deepseek.ui.generation import EXAMPLES, GENERATION_QUEUE, OPENING_QUEUE, QUICK_QUEUE, Generation, generate
from deepseek.ui.plots.sampling import entropy_and_temperature
from deepseek.ui.server import model_registry


def build(demo, checkpoint: gr.State, kept: gr.BrowserState, first: Generation):
    """Draws the tab, which shows `first`. Returns (State with the user's Generation, the events after which one has ended, the
    box of interventions).

    Every sample comes from the user's `checkpoint`; when that changes the prompt is sampled again.
    """
    state, current = gr.State(first, time_to_live=3600), checkpoint.value
    with gr.Row(elem_id="bar"):
        prompt = gr.Textbox(chat.user_prompt(first), label="prompt", show_label=False, container=False, lines=1, max_lines=8,
                            scale=6, min_width=240)  # fmt: skip
        go = gr.Button("Generate", variant="primary", min_width=100)
        stop = gr.Button("Stop", min_width=70)
        again = gr.Button("Regenerate", min_width=120)
    with gr.Row(elem_id="examples"):
        for label, texts in EXAMPLES.items():
            gr.Examples([[text] for text in texts], prompt, label=label, cache_examples=False, api_visibility="private")
    chat_inputs = chat.build_switch(checkpoint)
    with gr.Row(elem_id="first-screen"):
        with gr.Column(scale=5, min_width=320):
            gr.Markdown("The model continues your prompt. Click a token to see how it was sampled.")
            help = "the text, token by token; arrow keys move from one to the next"
            strip = token_strip("strip", "probability", help, first.strip)
            stats = gr.Markdown(first.stats, elem_id="stats")
            reply_row, message, send = chat.build_reply(first)
            tree, comparison = branches.build()
            detail = token_detail.build(first)
            word, ask, answer = why_not.build()
            with gr.Accordion("entropy and temperature along the text", open=False):
                plot = entropy_and_temperature(first.tokens)
                along = figure(plot, "along-the-text", elem_classes="wide", elem_id="along")
            with gr.Accordion("the text as a table", open=False):
                table = token_detail.text_table(first)
        with gr.Column(scale=6, min_width=320):
            board("strip")
            with gr.Accordion("sampler", elem_id="sampler"):
                preset, controls = sampler_controls.sampler_controls(kept, checkpoint)
                with gr.Row():
                    info = dict(info="same seed, same text", min_width=200)
                    seed = sampler_controls.seed_box(first.params.seed, "seed", elem_id="seed", **info)
                    info = dict(info="otherwise each text gets a new one", min_width=200)
                    locked = gr.Checkbox(False, label="keep this seed", elem_id="keep-seed", **info)
                with gr.Accordion("experts switched off, forced, promoted, suppressed", open=False):
                    interventions = interventions_box("")
            query = gr.Textbox(label="query", visible="hidden")  # of the link to the text, once one was generated
            shared_files, shared = share.build(state, kept, preset, controls, current)

    inputs, details = [seed, locked, interventions, *controls.values()], [*detail, along, table, tree[1]]
    # They change with the text, not while it grows.
    fixed = [seed, state, query, reply_row, message, *tree, *shared_files]
    view = SharedOutputs([strip, stats, *fixed], **GENERATION_QUEUE)

    def skip(components):
        return [gr.skip() for _ in components]

    def fixed_values(generation, message=gr.skip()):  # noqa: B008
        hidden, link = [gr.update(visible=False)] * len(shared_files), share.query_of(generation, current)
        reply = gr.update(visible=bool(generation.messages)), message
        return [generation.params.seed, generation, link, *reply, *branches.show(generation), *hidden]

    def show_selected(generation):
        """Details of the selected token, again if another one was selected meanwhile: a newer answer may come first."""
        index = None
        while index != generation.selected:
            index = generation.selected
            values = token_detail.show(generation, index)
        return values

    def show_details(generation):
        if not generation:  # expired, which `revive` mends
            return gr.skip()
        rest = entropy_and_temperature(generation.tokens), token_detail.rows(generation), branches.tree(generation)
        return [*show_selected(generation), *rest]

    def stream(generations, **values):
        first_update = True
        for generation in generations:
            # The State holds the growing object itself: after a Stop it has what there is, and the token selected meanwhile.
            is_first = first_update and bool(generation.tokens)
            changes = fixed_values(generation, **values) if is_first else skip(fixed)
            yield [generation.strip, generation.stats, *changes]
            first_update = first_update and not is_first

    def sample(turn, path, request, seed, locked, interventions, *values):
        params = sampler_controls.to_params(controls, values, seed, locked)
        options = dict(interventions=read_interventions(interventions), is_over=turn.is_over)
        yield from generate(*model_registry.get_model(path), request, params, **options)

    def run(turn, path, prompt, is_chat, system, *values):
        _, tokenizer = model_registry.get_model(path)
        yield from stream(sample(turn, path, chat.request_of(tokenizer, prompt, is_chat, system), *values))

    def run_again(turn, path, last, *values):
        yield from stream(sample(turn, path, last.request, *values))

    def run_reply(turn, path, last, text, *values):
        yield from stream(sample(turn, path, chat.next_messages(last, text), *values), message="")

    def run_other_checkpoint(turn, path, last, *values):
        if last and last.checkpoint == path:  # a link's sample
            yield gr.skip()
        else:
            yield from run(turn, path, *values)

    def branch(turn, last, event: gr.EventData):
        # Of the table on the screen, which may be older than the token selected last.
        token, index = event_int(event, "id"), event_int(event, "index")
        candidates = last.tokens[index].candidates if index in range(len(last.tokens)) else []
        if token not in {candidate.id for candidate in candidates}:
            raise user_error(ValueError(f"candidate is {token!r:.40}; it must be one of the table's."))
        yield from go_to(turn, last, branches.branch_at(last, index, token))

    def follow(turn, last, event: gr.EventData):
        yield from go_to(turn, last, branches.named(last, getattr(event, "id", None)))

    def go_to(turn, last, branch):
        """Shows the text of a branch, which is sampled unless it was before."""
        if generation := last.branches.get(branch):
            yield [generation.strip, generation.stats, *fixed_values(generation)]
            return
        model, options = model_registry.get_model(last.checkpoint), dict(branches=last.branches, is_over=turn.is_over)
        options["interventions"] = last.interventions
        yield from stream(generate(*model, last.request, last.params, dict(branch), **options))

    on_text = [  # that the page shows
        view.on(again.click, run_again, [checkpoint, state, *inputs]),
        view.on([send.click, message.submit], run_reply, [checkpoint, state, message, *inputs]),
        view.on(detail[2].branch, branch, [state]),
        view.on(tree[1].select, follow, [state]),
    ]
    events = [
        view.on([go.click, prompt.submit], run, [checkpoint, prompt, *chat_inputs, *inputs]),
        view.on(checkpoint.change, run_other_checkpoint, [checkpoint, state, prompt, *chat_inputs, *inputs]),
        *on_text,
    ]
    view.stop_on(stop.click)

    def select(generation, event: gr.EventData):
        index, order = event_int(event, "index"), event_int(event, "order") or 0
        if index not in range(len(generation.tokens)) or order < generation.select_order:
            return gr.skip()
        generation.selected, generation.select_order = index, order
        return show_selected(generation)

    about_text = [
        view.add(strip.select, select, [state], detail, **QUICK_QUEUE),
        view.add([ask.click, word.submit], why_not.answer, [state, word], answer, show_progress="minimal"),
        view.add(tree[2].input, branches.show_comparison, [state, tree[2]], comparison, **QUICK_QUEUE),
    ]
    for event in events:
        view.add(event.then, show_details, [state], details, **QUICK_QUEUE)

    seed.input(None, seed, locked, js="seed => seed.trim() !== ''", **QUICK_QUEUE)  # whoever types a seed wants it

    @user_errors()
    def restore(kept, query, locked, draft):
        """Puts a link's prompt, seed and settings into the page, or those of this window before it was loaded again."""
        link = QueryParams(query)
        text, params, _ = share.from_query(link, inf)
        if "prompt" not in link:
            return [draft or gr.skip(), query, *skip([preset, *chat_inputs, *inputs])]
        messages, values = share.messages_from_query(link), asdict(params)
        sampler = {name: values[name] for name in sampler_controls.PRESET_FIELDS}
        shown = presets.update(kept, presets.name_of(sampler, kept, presets.CUSTOM))
        return [
            draft or text,
            query,
            shown,
            True if messages else gr.skip(),
            chat.system_prompt(messages) if messages else gr.skip(),
            params.seed or 0,
            locked and params.seed is not None,
            "\n".join(map(str, share.interventions_from_query(link))),
            *(sampler_controls.fit_to(control, values[name]) for name, control in controls.items()),
        ]

    def run_link(turn, query):
        link = QueryParams(query)
        if "prompt" not in link:
            yield gr.skip()
            return
        with user_errors():
            path = link.get("checkpoint", current)
            for progress in model_registry.opening(path, current):
                yield [gr.skip(), progress, *skip(fixed)]
            model, tokenizer = model_registry.open_model(path.strip())
            prompt, *request = share.from_query(link, model.config.vocab_size)
            prompt = share.messages_from_query(link) or prompt
            known = share.branches_from_query(link, model.config.vocab_size)
            options = dict(interventions=share.interventions_from_query(link), is_over=turn.is_over)
        yield from stream(generate(model, tokenizer, prompt, *request, known, **options))

    def revive(turn, generation, query):
        """Samples a text that has expired again, from its link: the strip asks for the selected token again as it comes."""
        if generation:  # the event was refused for another reason
            yield gr.skip()
        else:
            gr.Info("The same text is sampled again, from its seed.")
            yield from run_link(turn, query)

    def show_link_details(generation, query):
        return show_details(generation) if "prompt" in QueryParams(query) else gr.skip()

    @user_errors()
    def open_link_checkpoint(query):
        link = QueryParams(query)
        return (
            model_registry.open_requested(link["checkpoint"], current)[0].name_or_path
            if "checkpoint" in link
            else gr.skip()
        )

    recalled = [prompt, query, preset, *chat_inputs, *inputs]
    loaded = demo.load(restore, [kept, query, locked, prompt], recalled, js=share.RECALL, **QUICK_QUEUE)
    linked = view.on(loaded.success, run_link, [query])
    view.add(linked.then, show_link_details, [state, query], details, **QUICK_QUEUE)
    for event in (*on_text, *about_text, *shared):
        view.on(event.failure, revive, [state, query])
    # Last: all tabs follow the user's checkpoint, and by now the link's sample is there.
    quiet = dict(api_visibility="private", show_progress="hidden")
    linked.success(open_link_checkpoint, query, checkpoint, **quiet, **OPENING_QUEUE)
    for event in (query.change, locked.change, prompt.change):
        event(None, [query, locked, prompt], None, js=share.REMEMBER, **QUICK_QUEUE)
    return state, [*events, linked], interventions
