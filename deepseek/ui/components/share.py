"""Saving and sharing: presets in the user's browser, a link that restores everything, a file that repeats a sample."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlencode

import gradio as gr

from deepseek.data.chat import check_messages
from deepseek.inference import generation_record
from deepseek.inference.forced_tokens import parse_forced_tokens
from deepseek.inference.sampling import SamplingParams
from deepseek.interpret.interventions import Intervention, parse_interventions
from deepseek.settings.aliases import ALIASES, DYNATEMP_RANGE, rename
from deepseek.settings.schema import from_text, holds_several
from deepseek.ui.components import chat, presets
from deepseek.ui.components.branches import MAX_BRANCHES, branch_name, leaves
from deepseek.ui.components.sampler_controls import FIELDS, PRESET_FIELDS, from_control
from deepseek.ui.generation import QUICK_QUEUE, add_branch
from deepseek.ui.server import model_registry

# A window keeps the link of its text, and a prompt that is being written, until it is closed: a reload shows them again. The
# address stays as it is: on a Space it is that of a frame, which a reload forgets. A gr.BrowserState is one for all windows.
REMEMBER = """(query, locked, draft) => {
  try { sessionStorage.setItem('deepseek-text', JSON.stringify({at: location.search, query, locked, draft})) } catch {} }"""
RECALL = f"""(...values) => {{
  const [kept] = ({presets.READ})(...values), address = location.search.slice(1);
  let text = null;
  try {{ text = JSON.parse(sessionStorage.getItem('deepseek-text')) }} catch {{}}
  if (text?.at !== location.search) return [kept, address, true, ''];
  return [kept, text.query || address, text.locked, text.draft] }}"""


def to_query(
    prompt: str,
    params: SamplingParams,
    forced_tokens: dict[int, int],
    checkpoint: str = "",
    branches: Iterable = (),
    interventions: Iterable[Intervention] = (),
    messages: Sequence[dict] = (),
) -> str:
    """A link's query string: prompt, settings that are not neutral, a branch's tokens as position-id, the checkpoint, the
    other branches, the interventions as texts, and the messages of a chat as JSON.
    """
    neutral = SamplingParams()
    values = {name: value for name, value in asdict(params).items() if value != getattr(neutral, name)}
    query = {
        name: [""] if value == () else value for name, value in values.items()
    }  # a list without items is in it too
    if forced_tokens:
        query["forced_tokens"] = branch_name(sorted(forced_tokens.items())).split(".")
    if branches:
        query["branches"] = [branch_name(branch) for branch in branches]
    if messages:
        query["messages"] = [json.dumps(messages, ensure_ascii=False)]
    if interventions:
        query["interventions"] = list(map(str, interventions))
    if checkpoint:
        query["checkpoint"] = checkpoint
    return urlencode({"prompt": prompt, **query}, doseq=True)


def from_query(query, vocab_size: float) -> tuple[str, SamplingParams, dict[int, int]]:
    """(prompt, settings, forced tokens) of a link's query as QueryParams. Raises ValueError naming the wrong field.

    Names that resemble no field are left to others, such as gradio's `__theme` and a tracker's `utm_source`.
    """
    names = [
        *FIELDS,
        *(old for old, name in ALIASES.items() if name in FIELDS),
        "prompt",
        "forced_tokens",
        "branches",
        "interventions",
        "messages",
        "checkpoint",
        DYNATEMP_RANGE,
    ]
    for name in query:
        if name not in names and (meant := get_close_matches(name, names, 1, 0.8)):
            raise ValueError(f"{name[:40]!r} is no name of a setting; it must be {meant[0]}.")
    texts = rename({name: query.getlist(name) for name in query if name != DYNATEMP_RANGE})
    settings = {}
    for name, field in FIELDS.items():
        if name in texts:
            values = [from_text(field, text) for text in texts[name]]
            settings[name] = tuple(value for value in values if value) if holds_several(field) else values[-1]
    if DYNATEMP_RANGE in query:
        settings[DYNATEMP_RANGE] = from_text(FIELDS["temperature"], query[DYNATEMP_RANGE])
    forced_tokens = parse_forced_tokens(texts.get("forced_tokens", []), vocab_size)
    return query.get("prompt", ""), SamplingParams(**rename(settings)), forced_tokens


def branches_from_query(query, vocab_size: float) -> dict:
    """The branches of a link, not sampled yet. Raises ValueError."""
    branches = {}
    for name in query.getlist("branches"):
        forced_tokens = parse_forced_tokens(name.split("."), vocab_size, "branches")
        add_branch(branches, tuple(sorted(forced_tokens.items())))
        if len(branches) > MAX_BRANCHES:
            raise ValueError(f"branches are over {MAX_BRANCHES}; there must be at most {MAX_BRANCHES}.")
    return branches


def interventions_from_query(query) -> list[Intervention]:
    """The interventions of a link. Raises ValueError."""
    return parse_interventions(query.getlist("interventions"))


def messages_from_query(query) -> list[dict]:
    """The messages of a link to a chat, [] for any other. Raises ValueError."""
    if "messages" not in query:
        return []
    try:
        return check_messages(json.loads(query["messages"]))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"messages are {query['messages']!r:.60}; they must be JSON.") from error


def query_of(generation, current: str) -> str:
    """A link's query string for a sample; it names the checkpoint if that is not the page's own, `current`."""
    checkpoint = "" if generation.checkpoint == current else generation.checkpoint
    known = [*generation.branches, generation.branch]
    others = [branch for branch in leaves(known) if branch != generation.branch]
    prompt = chat.user_prompt(generation)
    arguments = prompt, generation.params, generation.forced_tokens, checkpoint, others
    return to_query(*arguments, generation.interventions, generation.messages)


def export_file(generation) -> str:
    """The path of a new JSON file with the generation's record."""
    model, _ = model_registry.get_model(generation.checkpoint)
    path = Path(tempfile.mkdtemp(prefix="generation-")) / f"generation-seed-{generation.params.seed}.json"
    tokens, forced, branches = list(generation.tokens), generation.forced_tokens, list(generation.branches.values())
    others = [(other.forced_tokens, list(other.tokens)) for other in branches if other and other is not generation]
    arguments = (
        generation.prompt,
        generation.params,
        tokens,
        forced,
        others,
        generation.interventions,
        generation.messages,
    )
    record = generation_record.make_record(model, *arguments)
    path.write_text(json.dumps(record))
    return str(path)


def build(
    generation: gr.State, kept: gr.BrowserState, preset: gr.Dropdown, controls: dict, current: str
) -> tuple[list[gr.components.Component], list]:
    """Draws and wires `kept` presets, link and export, for the user's `generation` and the sampler's `controls`.

    `current` is the page's own checkpoint. Returns the link and the exported file, to be hidden when another text begins, and
    the listeners that make them.
    """
    with gr.Accordion("save and share", open=False):
        with gr.Row():
            label = "save these settings as a preset"
            name = gr.Textbox(label=label, max_length=presets.MAX_NAME_CHARACTERS, placeholder="its name", scale=3)
            save = gr.Button("Save", scale=1, min_width=70)
        delete = gr.Button("Delete the chosen preset", size="sm")
        share = gr.Button("Make a link to this text", size="sm")
        link = gr.Textbox(label="link", interactive=False, buttons=["copy"], visible=False, elem_id="link")
        export_button = gr.Button("Export as JSON, with every trace", size="sm")
        label = "to repeat it: python -m deepseek.generate --repeat FILE"
        file = gr.File(label=label, visible=False, elem_id="export")

    def save_preset(kept, name, *values):
        settings = {field: from_control(field, value) for field, value in zip(PRESET_FIELDS, values)}
        kept = presets.add_preset(presets.valid_presets(kept), name, settings)
        return kept, presets.update(kept, name.strip()), ""

    def delete_preset(kept, name):
        kept = presets.remove_preset(presets.valid_presets(kept), name)
        return kept, presets.update(kept, presets.CUSTOM)

    def make_query(generation):
        return gr.update(value=query_of(generation, current), visible=True)

    def export(generation):
        return gr.update(value=export_file(generation), visible=True)

    inputs, fresh = [kept, name, *(controls[name] for name in PRESET_FIELDS)], dict(js=presets.READ, **QUICK_QUEUE)
    for event in (
        save.click(save_preset, inputs, [kept, preset, name], **fresh),
        delete.click(delete_preset, [kept, preset], [kept, preset], **fresh),
    ):
        event.success(None, kept, None, js=presets.WRITE, **QUICK_QUEUE)
    shared = share.click(make_query, generation, link, **QUICK_QUEUE)
    whole = "query => location.origin + location.pathname + '?' + query"
    shared.success(None, link, link, js=whole, **QUICK_QUEUE)
    exported = export_button.click(export, generation, file, **QUICK_QUEUE)
    return [link, file], [shared, exported]
