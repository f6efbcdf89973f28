"""What constrained output costs with three libraries: `python tests/measure/grammars.py [TOKENIZER ...]`.

For the demo's vocabulary and other tokenizer folders, and each library of llguidance, outlines-core and xgrammar that is
installed: seconds to prepare the tokenizer, milliseconds to compile a grammar, and microseconds a token (advance, and the mask
of the next token) while a valid text is followed. A line of JSON each.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[2]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer"},
        "friends": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        "kind": {"enum": ["fox", "bear", "owl"]},
    },
    "required": ["name", "age", "friends", "kind"],
    "additionalProperties": False,
}
NAMES = [
    f"{colour} {animal}" for colour in ("red", "blue", "old", "shy") for animal in ("fox", "bear", "owl", "cat", "hen")
]
FREE = "Once upon a time, there was a little fox. He loved to play in the big green garden with his friends."
GRAMMARS = {  # name: (kind, pattern, a text that follows it)
    "sentence": ("regex", r"[A-Z][a-z]+( [a-z]+){2,8}\.", "Timmy went to play with his friends."),
    "free text": ("regex", r"[A-Za-z ,]+\.( [A-Za-z ,]+\.)*", FREE),
    "names": ("regex", "|".join(NAMES), "shy owl"),
    "schema": ("schema", json.dumps(SCHEMA), '{"name":"Lily the fox","age":7,"friends":["Tom","Mia"],"kind":"fox"}'),
}


def token_bytes(tokenizer) -> list[bytes]:
    """The bytes of every token of a byte-level tokenizer."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    of_character = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    return [
        bytes(of_character.get(c, 63) for c in tokenizer.convert_ids_to_tokens(token))
        for token in range(len(tokenizer))
    ]


def llguidance(tokenizer):
    from llguidance import LLMatcher, hf

    prepared = hf.from_tokenizer(tokenizer)
    kinds = {"regex": LLMatcher.grammar_from_regex, "schema": LLMatcher.grammar_from_json_schema}

    def compile(kind, pattern):
        matcher = LLMatcher(prepared, kinds[kind](pattern))
        assert not matcher.is_error(), matcher.get_error()
        return matcher.consume_token, lambda: np.frombuffer(matcher.compute_bitmask(), np.uint8)

    return compile


def outlines_core(tokenizer):
    from outlines_core import Guide, Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema
    from outlines_core.kernels.torch import allocate_token_bitmask, fill_next_token_bitmask

    ids = {}
    for token, spelling in enumerate(token_bytes(tokenizer)):
        if token != tokenizer.eos_token_id:
            ids.setdefault(spelling, []).append(token)
    vocabulary, mask = Vocabulary(tokenizer.eos_token_id, ids), allocate_token_bitmask(len(tokenizer))

    def compile(kind, pattern):
        guide = Guide(Index(build_regex_from_schema(pattern) if kind == "schema" else pattern, vocabulary))
        return guide.advance, lambda: fill_next_token_bitmask(guide, mask) or mask

    return compile


def xgrammar(tokenizer):
    import xgrammar as xgr

    compiler = xgr.GrammarCompiler(
        xgr.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer)), max_threads=1
    )
    mask = xgr.allocate_token_bitmask(1, len(tokenizer))

    def compile(kind, pattern):
        if kind == "schema":
            grammar = compiler.compile_json_schema(pattern, any_whitespace=False, separators=(",", ":"))
        else:
            grammar = compiler.compile_regex(pattern)
        matcher = xgr.GrammarMatcher(grammar)
        return matcher.accept_token, lambda: matcher.fill_next_token_bitmask(mask) or mask

    return compile


def main():
    for folder in [str(ROOT / "assets/demo"), *sys.argv[1:]]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for library in (llguidance, outlines_core, xgrammar):
            start = time.perf_counter()
            try:
                compile = library(tokenizer)
            except ImportError as error:
                print(json.dumps({"library": library.__name__, "missing": str(error)}))
                continue
            line = {"library": library.__name__, "vocabulary": len(tokenizer)}
            line["prepare_s"] = round(time.perf_counter() - start, 2)
            for name, (kind, pattern, text) in GRAMMARS.items():
                ids, compile_ms, token_us = tokenizer.encode(text, add_special_tokens=False), [], []
                try:
                    for _ in range(3):
                        start = time.perf_counter()
                        advance, mask = compile(kind, pattern)
                        mask()
                        compile_ms.append(1e3 * (time.perf_counter() - start))
                        for token in ids:
                            start = time.perf_counter()
                            assert advance(token) is not False
                            mask()
                            token_us.append(1e6 * (time.perf_counter() - start))
                except Exception as error:
                    line[name] = str(error)[:80]
                    continue
                figures = dict(first_ms=compile_ms[0], compile_ms=median(compile_ms), token_us=median(token_us))
                line[name] = {key: round(value, 2) for key, value in (figures | {"max_us": max(token_us)}).items()}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
