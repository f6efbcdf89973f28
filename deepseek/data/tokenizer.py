"""Text to token ids and back: prompts, documents, exact incremental decoding, and a tokenizer trained on sources."""

import re
import unicodedata

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from deepseek.data.chat import is_chat, render
from deepseek.data.file_formats import END_OF_TEXT
from deepseek.data.readers import documents
from deepseek.data.text_lines import DEFAULT_OPTIONS

# Longer ones are cut to learn from: DNA without spaces is one word, and learning takes time squared in a word's length.
LONG_WORD = re.compile(r"(\S{32}|\s{32})")
SIGNS = {"\n": "↵", "\t": "⇥"}
REPLACEMENT_CHARACTER = "\ufffd"  # what a decoder shows for bytes that are not, or not yet, a character


def encode_prompt(
    tokenizer,
    prompt,
    max_len: int | None,
    min_new_tokens: int = 1,
    name: str = "prompt",
    vocab_size: int | None = None,
    add_special_tokens: bool = True,
) -> list[int]:
    """Token ids of a prompt: a str, a list of ids, or a list of messages, which the tokenizer's chat template renders.

    A text gets the tokenizer's special tokens, unless it begins with its begin token or `add_special_tokens` is False; a chat
    has those of its template. Raises ValueError, naming the prompt `name`, if it is empty, leaves fewer than `min_new_tokens`
    of `max_len`, or holds an id that is not below `vocab_size`; and as `chat.render` does.
    """
    max_prompt_len = max_len and max_len - min_new_tokens
    if is_chat(prompt):
        prompt, add_special_tokens = render(tokenizer, prompt), False
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"{name} is empty; it must hold at least one character that is not a space.")
        if max_len and len(prompt) > 100 * max_len:  # far too long to be worth encoding
            size = f"{len(prompt):,} characters"
            raise ValueError(f"{name} has {size}; the model reads {max_prompt_len:,} tokens at most.")
        begins = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)  # a rendered chat that was copied
        # A lone surrogate, which a browser or JSON can send, is no character and cannot be encoded.
        text = prompt.encode("utf-8", "replace").decode()
        prompt = tokenizer(text, add_special_tokens=add_special_tokens and not begins)["input_ids"]
    ids = list(prompt)
    if not ids:
        raise ValueError(f"{name} is empty; it must hold at least one token.")
    if outside := [token for token in ids if vocab_size and token not in range(vocab_size)]:
        raise ValueError(f"{name} holds id {outside[0]!r:.40}; it must be a whole number from 0 to {vocab_size - 1}.")
    if max_len and len(ids) > max_prompt_len:
        reason = ", to leave space for a new token" if min_new_tokens else ""
        raise ValueError(f"{name} has {len(ids):,} tokens; the model reads {max_prompt_len:,} at most{reason}.")
    return ids


class IncrementalDetokenizer:
    """Decodes ids one by one: the chunks of `add_token` and the last one of `flush` join to the full decode.

    Special tokens are in the text by their names. This holds for any ids of a byte-level tokenizer; one with byte fallback may
    show invalid bytes differently.
    A chunk leaves out only bytes that may still become a character; it never waits for a space.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.window_ids: list[int] = []  # a few ids whose text was returned, as context, then the newest ones
        self.num_context_ids = 0
        self.num_returned = 0  # characters of the window's text

    def _decode(self, ids) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def add_token(self, token: int) -> str:
        """The text that `token` completes, "" while it ends within a character."""
        self.window_ids.append(token)
        text = self._decode(self.window_ids)
        complete = text.rstrip(REPLACEMENT_CHARACTER)
        chunk = complete[self.num_returned :]
        self.num_returned = max(self.num_returned, len(complete))
        if text == complete:
            # The newest tokens alone are context enough for what follows, if they show as text (some decoders strip
            # a leading space).
            newest = self._decode(self.window_ids[self.num_context_ids :])
            if newest.strip():
                self.window_ids = self.window_ids[self.num_context_ids :]
                self.num_context_ids, self.num_returned = len(self.window_ids), len(newest)
        return chunk

    def flush(self) -> str:
        """The rest, with U+FFFD for bytes that never became a character."""
        rest = self._decode(self.window_ids)[self.num_returned :]
        self.num_returned += len(rest)
        return rest


def token_texts(tokenizer, ids) -> list[str]:
    """The text of each token, of a special token its name.

    The texts join to the full decode: the last token of a character has all of it.
    """
    detokenizer = IncrementalDetokenizer(tokenizer)
    texts = [detokenizer.add_token(token) for token in ids]
    if texts:
        texts[-1] += detokenizer.flush()
    return texts


def show_invisible(text: str) -> str:
    """A token's text with spaces, line ends, control and invisible characters replaced by visible signs."""

    def visible(character: str) -> str:
        if character in SIGNS:
            return SIGNS[character]
        if ord(character) < 32:
            return chr(0x2400 + ord(character))
        hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        return f"U+{ord(character):04X}" if hidden else character

    text = "".join(map(visible, text))
    return "·" + text[1:] if text.startswith(" ") else text or "…"


def train_tokenizer(
    sources, vocab_size: int, mixture_weights=None, max_characters: int = 24_000_000, options=DEFAULT_OPTIONS
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE (Sennrich et al., 2016; GPT-2's splitting) on about `max_characters` of the sources.

    `mixture_weights` are the proportions of the sources (default: even). Any text round-trips exactly. The one special
    token, <|endoftext|> (id 0), begins every text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokens = dict(special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **tokens)
    weights = mixture_weights or [1.0] * len(sources)

    def texts():
        for source, weight in zip(sources, weights):
            remaining = int(max_characters * weight / sum(weights))
            for text in documents(source, options):
                yield from LONG_WORD.split(text[:remaining])
                remaining -= len(text)
                if remaining <= 0:
                    break

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    )
    special = dict(bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def start_token(tokenizer) -> int | None:
    """The token before every document: the tokenizer's begin token, else its end token, None if it has neither."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def encode_document(tokenizer, text: str) -> list[int]:
    """Token ids of one document after its `start_token`, if there is one; a text that begins with it gets no second one."""
    return with_start(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def with_start(tokenizer, ids: list[int]) -> list[int]:
    """Token ids after the `start_token` of documents, unless there is none or they begin with it."""
    start = start_token(tokenizer)
    return ids if start is None or ids[:1] == [start] else [start, *ids]
