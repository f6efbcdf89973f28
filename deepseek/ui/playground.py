"""The Playground tab: a prompt, the sampler, the text token by token, and the selected token."""

import os
import random
import time
from dataclasses import asdict, replace
from math import inf

import gradio as gr

from deepseek.config import expert_count
from deepseek.engine import TokenTrace
from deepseek.plots.sampling import along_the_text
from deepseek.sampling import SamplingParams
from deepseek.trace import routers
from deepseek.ui import controls, keep, served, token_detail
from deepseek.ui.figure import figure
from deepseek.ui.strip import generated_line, head_line, token_strip

EXAMPLES = [
    "Once upon a time",
    "In the depths of space",
    "Music Festivals Across America",
    "The most interesting scientific discovery",
    "When I think about consciousness",
    "Neutrino Masses and Oscillations",
]
REDRAW = 0.15  # seconds between two updates of a page; more often costs the engine and pegs the browser
UPDATES = 30  # updates a second of all pages together
DEADLINE = 120  # seconds that one text may take
PLACES = 2  # jobs on the model at a time
THREADS = max(1, (os.cpu_count() or 1) // PLACES)  # of each: with a thread a core they would wait for one another
MODEL = dict(concurrency_id="model", concurrency_limit=PLACES)  # looking at texts shares these places in the queue
TEXTS = dict(concurrency_id="texts", concurrency_limit=64)  # and writing them, many at once, these


class Generation:
    """One text as it grows: shared by the tabs of one reader.

    Not a dataclass: gradio would turn a dataclass in a State into a dictionary at every update.
    """

    def __init__(self, prompt: str, params: SamplingParams, forced: dict[int, int] | None = None, parent=None):
        self.prompt, self.params = prompt, params
        self.forced = forced or {}  # tokens that the reader put there, by place in the output
        self.parent = parent  # the Generation that this one branched off
        self.selected = max(self.forced, default=0)  # place of the token that the reader looks at
        self.tokens: list[TokenTrace] = []
        self.lines: list[str] = []  # of the token strip
        self.seconds = self.first = 0.0  # until the newest token, and until the first
        self.late = False
        self.checkpoint = ""  # the path of the model that writes it

    @property
    def text(self) -> str:
        return self.prompt + "".join(token.text for token in self.tokens)

    @property
    def ended(self) -> bool:
        return self.late or bool(self.tokens and self.tokens[-1].finish)

    @property
    def strip(self) -> str:
        return "".join(self.lines)

    @property
    def stats(self) -> str:
        parts = [f"{len(self.tokens)} tokens", f"seed {self.params.seed}"]
        if self.seconds > self.first:  # the first waits for the prompt to be read
            parts.insert(1, f"{(len(self.tokens) - 1) / (self.seconds - self.first):.0f} tokens/s")
        if self.forced:
            parts.append("branched at token " + ", ".join(str(place + 1) for place in sorted(self.forced)))
        if self.late:
            parts.append(f"stopped after {DEADLINE} seconds")
        elif self.tokens and self.tokens[-1].finish:
            parts.append(f"ended by {self.tokens[-1].finish}")
        return " · ".join(parts)


def generate(model, tokenizer, prompt: str, params: SamplingParams, forced=None, parent=None, changes=()):
    """Yields the Generation, written under `changes`, at most every REDRAW seconds and at its end. Raises gr.Error."""
    if not isinstance(prompt, str):
        raise controls.refusal(ValueError(f"prompt is {prompt!r:.60}; it must be text."))
    if params.seed is None:
        params = replace(params, seed=random.randrange(2**31))
    experts = expert_count(model.config)
    generation = Generation(prompt, params, forced, parent)
    generation.checkpoint = model.name_or_path
    generation.lines.append(head_line(sorted(routers(model)), experts, prompt))
    began, shown = time.monotonic(), 0.0  # the first token is shown at once
    tokens = served.stream(model, tokenizer, prompt, params, generation.forced, changes)
    try:
        for token in tokens:
            generation.tokens.append(token)
            generation.lines.append(generated_line(token))
            now = time.monotonic()
            generation.seconds = now - began
            generation.first = generation.first or generation.seconds
            generation.late = generation.seconds > DEADLINE
            if generation.ended:
                break
            if now - shown > max(REDRAW, served.writing() / UPDATES):
                shown = now
                yield generation
    except ValueError as error:
        raise controls.refusal(error) from error
    finally:
        tokens.close()
    yield generation


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
                along = figure(along_the_text(first.tokens), "along-the-text", elem_classes="wide", elem_id="along")
            with gr.Accordion("the text as a table", open=False):
                table = token_detail.text_table(first)
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                seed = gr.Number(first.params.seed, label="seed", info="same seed, same text")
                locked = gr.Checkbox(False, label="keep this seed", info="or draw a new one each time")
            preset, settings = controls.sampler_controls()
            keep.build(demo, state, preset, settings, checkpoint.value)

    def selected(generation):
        """The selected token; drawn anew if another was selected meanwhile, for an answer can overtake one that is newer."""
        index = None
        while index != generation.selected:
            index = generation.selected
            drawn = token_detail.show(generation, index)
        return drawn

    def shown(generation):
        return [*selected(generation), along_the_text(generation.tokens), token_detail.rows(generation)]

    def run(path, prompt, seed, locked, *values):
        params = controls.params(settings, values, seed, locked)
        yield from streamed(generate(*served.ready(path), prompt, params))

    def run_again(path, last, seed, locked, *values):
        yield from run(path, last.prompt, seed, locked, *values)

    def run_elsewhere(path, last, prompt, *values):
        """The text of a checkpoint just opened; a link brings its own."""
        if last.checkpoint == path:
            yield [gr.skip() for _ in outputs]
        else:
            yield from run(path, prompt, *values)

    def branch(last, event: gr.EventData):
        chosen, index = controls.told(event, "id"), min(last.selected, len(last.tokens) - 1)
        if chosen not in {c.id for c in last.tokens[index].candidates}:
            raise controls.refusal(ValueError(f"candidate is {chosen!r:.40}; it must be one of the table's."))
        forced = {place: token for place, token in last.forced.items() if place < index} | {index: chosen}
        yield from streamed(generate(*served.ready(last.checkpoint), last.prompt, last.params, forced, last))

    def streamed(generations):
        once = True
        for generation in generations:
            # The state holds the object itself, which goes on growing: what there is at a Stop is kept, and so is the
            # token that the reader selects meanwhile.
            fixed = [generation.params.seed, generation, gr.update(visible=bool(generation.parent))]
            yield [generation.strip, generation.stats, *(fixed if once else [gr.skip()] * 3)]
            once = False

    outputs = [strip, stats, seed, state, back]
    options = dict(outputs=outputs, api_visibility="private", show_progress="hidden", **TEXTS)
    inputs = [seed, locked, *settings.values()]
    events = [
        go.click(run, [checkpoint, prompt, *inputs], **options),
        prompt.submit(run, [checkpoint, prompt, *inputs], **options),
        again.click(run_again, [checkpoint, state, *inputs], **options),
        checkpoint.change(run_elsewhere, [checkpoint, state, prompt, *inputs], **options),
        detail[2].branch(branch, state, **options),
    ]
    events.append(stop.click(None, cancels=events, **controls.QUIET))

    def before(generation):
        old = generation.parent or generation
        return old.strip, old.stats, old.params.seed, old, gr.update(visible=bool(old.parent))

    events.append(back.click(before, state, outputs, **controls.QUIET))
    for event in events:
        event.then(shown, state, [*detail, along, table], **controls.QUIET)

    def select(generation, event: gr.EventData):
        index = controls.told(event, "index")
        if index not in range(len(generation.tokens)):
            return [gr.skip() for _ in detail]
        generation.selected = index
        return selected(generation)

    last = dict(show_progress="hidden", trigger_mode="multiple", **controls.QUIET)  # always_last would lose the index
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
            return keep.from_query(request.query_params, vocabulary)
        except ValueError as error:
            raise controls.refusal(error) from error

    def linked_model(request):
        try:
            return served.chosen(request.query_params.get("checkpoint", checkpoint.value), checkpoint.value)
        except ValueError as error:
            raise controls.refusal(error) from error

    def open_linked(request: gr.Request):
        return linked_model(request)[0].name_or_path if "checkpoint" in request.query_params else gr.skip()

    # In the queue, through which alone a refusal reaches the reader.
    restored = demo.load(restore, None, [prompt, *inputs], api_visibility="private", show_progress="hidden")
    linked = restored.success(run_linked, None, **options)

    def shown_linked(request: gr.Request, generation):
        return shown(generation) if "prompt" in request.query_params else [gr.skip() for _ in range(5)]

    linked.then(shown_linked, state, [*detail, along, table], **controls.QUIET)
    # The last step: with the reader's checkpoint all tabs change, and by now the link's text is there.
    linked.success(open_linked, None, checkpoint, api_visibility="private", show_progress="hidden", **MODEL)
    return state, [*events, linked]
