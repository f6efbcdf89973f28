"""A DeepSeek-style mixture of experts to watch while it thinks and learns."""

from deepseek.checkpoint import load
from deepseek.config import preset
from deepseek.engine import TokenTrace, stream
from deepseek.sampling import SamplingParams
from deepseek.trace import Trace, trace

__all__ = ["SamplingParams", "TokenTrace", "Trace", "load", "preset", "stream", "trace"]
