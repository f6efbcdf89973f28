"""A DeepSeek-style mixture of experts to watch while it thinks and learns."""

import importlib

# Public name -> its module, imported when the name is first used: `import deepseek` alone must stay cheap.
_MODULES = {
    "SamplingParams": "deepseek.inference.sampling",
    "TokenTrace": "deepseek.inference.token_trace",
    "Trace": "deepseek.interpret.trace",
    "load": "deepseek.inference.fast_generate",
    "preset": "deepseek.model.config",
    "stream": "deepseek.inference.engine",
    "trace": "deepseek.interpret.trace",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
