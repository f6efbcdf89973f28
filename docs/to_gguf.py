"""A checkpoint as a file for llama.cpp: `python docs/to_gguf.py LLAMA_CPP CHECKPOINT --outfile FILE`.

LLAMA_CPP is a clone of llama.cpp, whose own converter does the work and takes the other arguments. It knows how a
tokenizer splits text by a fingerprint of every published one; one that it does not know was learned here, and splits as
GPT-2's does.
"""

import sys

if len(sys.argv) < 3:
    sys.exit(__doc__)
folder = sys.argv.pop(1)
sys.path[:0] = [folder, f"{folder}/gguf-py"]

import convert_hf_to_gguf  # noqa: E402
from conversion.base import TextModel  # noqa: E402

published = TextModel.get_vocab_base_pre


def splitting(self, tokenizer) -> str:
    """llama.cpp's name for the way in which `tokenizer` splits text before its merges."""
    try:
        return published(self, tokenizer)
    except NotImplementedError:
        return "gpt-2"


TextModel.get_vocab_base_pre = splitting
convert_hf_to_gguf.main()
