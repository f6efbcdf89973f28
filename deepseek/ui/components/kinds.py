"""The kinds of text that experts are compared on: read from the page or a request, and traced within a time limit."""

import time
from collections.abc import Callable, Mapping

from deepseek.interpret.corpus import Corpus, cached_corpus
from deepseek.interpret.routing_stats import MAX_CHARACTERS
from deepseek.ui.components.traces import EXAMPLE_TEXTS
from deepseek.ui.errors import user_errors
from deepseek.ui.generation import DEADLINE_S

MAX_KINDS = 8
MAX_NAME_CHARACTERS = 24


@user_errors()
def check_kinds(texts) -> dict[str, str]:
    """Kinds of text {name: text}, or those of the examples for none. Raises gr.Error for what is no such thing."""
    texts = texts or EXAMPLE_TEXTS
    if not isinstance(texts, Mapping) or len(texts) > MAX_KINDS:
        raise ValueError(
            f"texts are {texts!r:.60}; they must be an object of at most {MAX_KINDS} names with their texts."
        )
    for name, text in texts.items():
        if not (isinstance(name, str) and 0 < len(name.strip()) <= MAX_NAME_CHARACTERS):
            rule = f"it must have 1 to {MAX_NAME_CHARACTERS} characters"
            raise ValueError(f"the name of a kind of texts is {name!r:.60}; {rule}.")
        if not isinstance(text, str):
            raise ValueError(f"text {name!r} of texts is {text!r:.60}; it must be text.")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(
                f"text {name!r} of texts has {len(text):,} characters; it must have at most {MAX_CHARACTERS:,}."
            )
    return dict(texts)


@user_errors()
def named_kinds(names: list, texts: list) -> dict[str, str]:
    """Kinds of text from the page's boxes; those without a text are left out. Raises gr.Error for two of one name."""
    filled = [(name, text) for name, text in zip(names, texts) if not isinstance(text, str) or text.strip()]
    for name, _ in filled:
        if [other for other, _ in filled].count(name) > 1:
            raise ValueError(f"two kinds of text are named {name!r:.40}; each must have a name of its own.")
    if not filled:
        raise ValueError("no text is filled in; at least one must be.")
    return check_kinds(dict(filled))


@user_errors()
def trace_kinds(model, tokenizer, texts: Mapping[str, str], on_progress: Callable[[float], None]) -> Corpus:
    """`cached_corpus` of checked kinds of text. Raises gr.Error."""
    return cached_corpus(model, tokenizer, texts, on_progress)


def stopped_in_time(on_progress: Callable[..., None]) -> Callable[..., None]:
    """`on_progress`, which from DEADLINE_S seconds on raises ValueError in place of going on."""
    start = time.monotonic()

    def step(*progress, **named):
        if time.monotonic() - start > DEADLINE_S:
            raise ValueError(f"texts took over {DEADLINE_S} seconds to measure; they must be shorter.")
        on_progress(*progress, **named)

    return step
