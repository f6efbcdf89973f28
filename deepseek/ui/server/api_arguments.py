"""The arguments of the named endpoints: read from settings classes, and checked."""

from dataclasses import fields
from inspect import Parameter, Signature

from deepseek.data.chat import check_messages, conversation
from deepseek.inference.sampling import SamplingParams
from deepseek.settings.aliases import rename


def setting_arguments(settings_class, names=None, **defaults) -> dict[str, tuple]:
    """{name: (type, default)} of every field of a dataclass of settings, or of those in `names`."""
    types, neutral = {f.name: f.type for f in fields(settings_class)}, settings_class()
    return {name: (types[name], defaults.get(name, getattr(neutral, name))) for name in names or types}


def set_arguments(function, arguments: dict[str, tuple]) -> None:
    """Has gr.api read arguments {name: (type, default)} from a `function(*values)`, which is annotated with its result."""
    parameters = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=type, default=default)
        for name, (type, default) in arguments.items()
    ]
    function.__signature__ = Signature(parameters, return_annotation=function.__annotations__["return"])
    function.__annotations__ |= {name: type for name, (type, _) in arguments.items()}


def require(name: str, value, type: type, rule: str) -> None:
    """Raises ValueError for a value of another type."""
    if not isinstance(value, type):
        raise ValueError(f"{name} is {value!r:.60}; it must be {rule}.")


def requested(tokenizer, prompt: str, messages: list, chat: bool) -> str | list[dict]:
    """What /generate, /compare and /sweep sample from: the messages, or the prompt, with `chat` as a user's message where there
    is a chat template. Raises ValueError.
    """
    require("chat", chat, bool, "true or false")
    require("prompt", prompt, str, "text")
    if prompt and messages:
        raise ValueError("prompt and messages are both given; it must be one of them.")
    if messages:
        return check_messages(messages)
    return conversation(tokenizer, prompt) if chat else prompt


def side_params(name: str, settings, seed: int) -> SamplingParams:
    """The settings of one side of /compare. Raises ValueError naming the side."""
    try:
        if not isinstance(settings, dict) or not rename(settings).keys() <= SamplingParams.__dataclass_fields__.keys():
            raise ValueError(f"settings are {settings!r:.60}; they must be fields of SamplingParams.")
        return SamplingParams(**{**rename(settings), "seed": seed})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
