"""Presets of the sampler: the built-in ones, and those that a user keeps in the browser."""

import gradio as gr

from deepseek.inference.sampling import SamplingParams
from deepseek.settings.aliases import rename
from deepseek.ui.errors import user_errors

PRESETS = {
    "neutral": {},
    # Of the settings whose samples repeat no more and vary no less than real stories, the one with the likeliest: docs/log.md.
    "stories": dict(temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.1),
    # p-e-w's settings of XTC: more varied than real stories are, and still likelier under the model: docs/log.md.
    "creative": dict(temperature=1.0, min_p=0.02, xtc_probability=0.5, xtc_threshold=0.1),
    "greedy": dict(temperature=0.0),
    "card, calm": dict(
        temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5
    ),
    "card, wild": dict(
        temperature=1.65, top_p=0.95, top_k=50, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.5
    ),
}
DEFAULT_PRESET = "stories"
CUSTOM = "custom"  # the settings of no preset
MAX_PRESETS = 50
MAX_NAME_CHARACTERS = 40
# Other windows keep presets too, so an event reads what the browser holds now, and a gr.BrowserState, which holds what it
# held when the page opened, only where nothing was kept since version 0.1.
READ = """(kept, ...rest) => {
  try { kept = JSON.parse(localStorage.getItem('deepseek-presets')) ?? kept } catch {}
  return [kept, ...rest] }"""
WRITE = "kept => { localStorage.setItem('deepseek-presets', JSON.stringify(kept)) }"


def valid_presets(kept) -> dict[str, dict]:
    """The valid presets in what the browser sent."""
    presets = {}
    for name, settings in kept.items() if isinstance(kept, dict) else ():
        try:
            settings = rename(settings)
            SamplingParams(**settings)
        except (AttributeError, TypeError, ValueError):
            continue
        presets[str(name)[:MAX_NAME_CHARACTERS]] = settings
    return dict(list(presets.items())[:MAX_PRESETS])


@user_errors()
def add_preset(presets: dict, name: str, settings: dict) -> dict:
    """`presets` with one more. Raises gr.Error for an invalid name."""
    name = name.strip() if isinstance(name, str) else ""
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise ValueError(f"name is {name!r:.60}; it must be 1 to {MAX_NAME_CHARACTERS} characters.")
    if name in (*PRESETS, CUSTOM):  # the built-in preset would hide it
        raise ValueError(f"name is {name!r}; it must be another than {', '.join(PRESETS)} and {CUSTOM}.")
    if len(presets) >= MAX_PRESETS and name not in presets:
        raise ValueError(f"there are {len(presets)} presets, the most that can be kept; replace or delete one of them.")
    return {**presets, name: settings}


@user_errors()
def remove_preset(presets: dict, name: str) -> dict:
    """`presets` without one. Raises gr.Error for one that is not among them."""
    if name not in presets:
        mine = ", ".join(presets) or "none yet"
        raise ValueError(f"preset is {name!r:.60}; to be deleted it must be one of yours: {mine}.")
    return {other: settings for other, settings in presets.items() if other != name}


def settings_of(name: str, kept) -> SamplingParams | None:
    """The settings of a preset, built-in or kept; None for CUSTOM and for one that another window has deleted."""
    presets = {**valid_presets(kept), **PRESETS}
    return SamplingParams(**presets[name]) if name in presets else None


def update(kept, name: str | None = None) -> dict:
    """The update of a dropdown of presets, which then offers those in `kept` and shows `name`, unless that is None."""
    choices = list({**PRESETS, **valid_presets(kept), CUSTOM: {}})
    return gr.update(choices=choices, **({} if name is None else {"value": name}))


def name_of(settings: dict, kept, shown: str) -> str:
    """The name of the preset with these settings, `shown` if it is one of several; CUSTOM if there is none."""
    for name in (shown, *PRESETS, *valid_presets(kept)):
        params = settings_of(name, kept)
        if params and all(getattr(params, field) == value for field, value in settings.items()):
            return name
    return CUSTOM
