"""The Playground tab: a prompt, the sampler, and the text token by token."""

import time
from dataclasses import dataclass, field

import gradio as gr

from deepseek.engine import stream
from deepseek.sampling import SamplingParams
from deepseek.trace import routers
from deepseek.ui import controls
from deepseek.ui.strip import generated_line, head_line, token_strip

EXAMPLES = [
    "Once upon a time",
    "In the depths of space",
    "Music Festivals Across America",
    "The most interesting scientific discovery",
    "When I think about consciousness",
    "Neutrino Masses and Oscillations",
]
REDRAW = 0.08  # seconds between two updates of the page; more often pegs the browser
DEADLINE = 120  # seconds that one text may take
MODEL = dict(concurrency_id="model", concurrency_limit=2)  # all work on the model shares these places in the queue


@dataclass
class Generation:
    """One text as it grows: shared by the tabs of one reader."""

    prompt: str
    params: SamplingParams
    tokens: list = field(default_factory=list)  # TokenTrace
    lines: list[str] = field(default_factory=list)  # of the token strip
    seconds: float = 0.0
    late: bool = False

    @property
    def text(self) -> str:
        return self.prompt + "".join(token.text for token in self.tokens)

    @property
    def strip(self) -> str:
        return "".join(self.lines)

    @property
    def stats(self) -> str:
        rate = len(self.tokens) / self.seconds if self.seconds else 0.0
        parts = [f"{len(self.tokens)} tokens", f"{rate:.0f} tokens/s", f"seed {self.params.seed}"]
        if self.late:
            parts.append(f"stopped after {DEADLINE} seconds")
        elif self.tokens and self.tokens[-1].finish:
            parts.append(f"ended by {self.tokens[-1].finish}")
        return " · ".join(parts)


def generate(model, tokenizer, prompt: str, params: SamplingParams):
    """Yields the Generation at most every REDRAW seconds while it grows, and at its end. Raises gr.Error."""
    if not isinstance(prompt, str):
        raise controls.refusal(ValueError(f"prompt is {prompt!r:.60}; it must be text."))
    experts = getattr(model.config, "num_local_experts", None) or 0
    generation = Generation(prompt, params, lines=[head_line(sorted(routers(model)), experts, prompt)])
    began = shown = time.monotonic()
    tokens = stream(model, tokenizer, prompt, params)
    try:
        for token in tokens:
            generation.tokens.append(token)
            generation.lines.append(generated_line(token))
            now = time.monotonic()
            generation.seconds = now - began
            generation.late = generation.seconds > DEADLINE
            if token.finish or generation.late:
                break
            if now - shown > REDRAW:
                shown = now
                yield generation
    except ValueError as error:
        raise controls.refusal(error) from error
    finally:
        tokens.close()
    yield generation


def build(model, tokenizer, first: Generation):
    """Draws the tab, with `first` already in it. Returns (State with the reader's Generation, the event that ends one)."""
    state = gr.State(first, time_to_live=3600)
    prompt = gr.Textbox(first.prompt, label="prompt", lines=2, max_lines=8)
    with gr.Row():
        go = gr.Button("Generate", variant="primary", min_width=90)
        stop = gr.Button("Stop", min_width=90)
        again = gr.Button("Regenerate", min_width=90)
    gr.Examples(
        [[example] for example in EXAMPLES], prompt, label="try", cache_examples=False, api_visibility="private"
    )
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            strip = token_strip(
                "strip", "probability", "the text, token by token; arrow keys move from one to the next"
            )
            strip.value = first.strip
            stats = gr.Markdown(first.stats, elem_id="stats")
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                seed = gr.Number(first.params.seed, label="seed", minimum=0, info="same seed, same text")
                locked = gr.Checkbox(False, label="keep this seed", info="or draw a new one each time")
            settings = controls.sampler_controls()

    def run(prompt, seed, locked, *values):
        params = controls.params(settings, values, seed, locked)
        state_sent = False
        for generation in generate(model, tokenizer, prompt, params):
            # The state holds the object itself, which goes on growing: what there is at a Stop is kept.
            yield generation.strip, generation.stats, params.seed, gr.skip() if state_sent else generation
            state_sent = True

    def run_again(last, seed, locked, *values):
        yield from run(last.prompt, seed, locked, *values)

    outputs = [strip, stats, seed, state]
    options = dict(outputs=outputs, api_visibility="private", show_progress="hidden", **MODEL)
    inputs = [seed, locked, *settings.values()]
    events = [
        go.click(run, [prompt, *inputs], **options),
        prompt.submit(run, [prompt, *inputs], **options),
        again.click(run_again, [state, *inputs], **options),
    ]
    stopped = stop.click(None, cancels=events, api_visibility="private", queue=False)
    return state, [*events, stopped]
