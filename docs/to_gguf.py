"""Converts a checkpoint for llama.cpp: `python docs/to_gguf.py LLAMA_CPP CHECKPOINT --outfile FILE`.

LLAMA_CPP is a clone of llama.cpp. Its own converter does the work and takes the other arguments. It recognizes a tokenizer's
pre-tokenization by a hash of published tokenizers; one that it does not know was trained here, and splits as GPT-2's does.
"""

import sys

if len(sys.argv) < 3:
    sys.exit(__doc__)
folder = sys.argv.pop(1)
sys.path[:0] = [folder, f"{folder}/gguf-py"]

import convert_hf_to_gguf  # noqa: E402
from conversion.base import TextModel  # noqa: E402

published_pre_tokenizer = TextModel.get_vocab_base_pre


def pre_tokenizer(self, tokenizer) -> str:
    """llama.cpp's name for the pre-tokenization of `tokenizer`."""
    try:
        return published_pre_tokenizer(self, tokenizer)
    except NotImplementedError:
        return "gpt-2"


TextModel.get_vocab_base_pre = pre_tokenizer
convert_hf_to_gguf.main()
