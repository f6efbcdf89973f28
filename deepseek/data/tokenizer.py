"""Text to token ids and back: prompts, documents, exact incremental decoding, and a tokenizer trained on sources."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from deepseek.data.file_formats import END_OF_TEXT
from deepseek.data.readers import documents

REPLACEMENT_CHARACTER = "\ufffd"  # what a decoder shows for bytes that are not, or not yet, a character


def encode_prompt(tokenizer, prompt, max_len: int | None, min_new_tokens: int = 1, name: str = "prompt") -> list[int]:
    """Token ids of a prompt (a str, or a list of ids), with the tokenizer's special tokens.

    Raises ValueError, naming the prompt `name`, if it is empty or leaves fewer than `min_new_tokens` of `max_len`.
    """
    max_prompt_len = max_len and max_len - min_new_tokens
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"{name} is empty; it must hold at least one character that is not a space.")
        if max_len and len(prompt) > 100 * max_len:  # far too long to be worth encoding
            size = f"{len(prompt):,} characters"
            raise ValueError(f"{name} has {size}; the model reads {max_prompt_len:,} tokens at most.")
        # A lone surrogate, which a browser or JSON can send, is no character and cannot be encoded.
        prompt = tokenizer(prompt.encode("utf-8", "replace").decode())["input_ids"]
    ids = list(prompt)
    if not ids:
        raise ValueError(f"{name} is empty; it must hold at least one token.")
    if max_len and len(ids) > max_prompt_len:
        reason = ", to leave space for a new token" if min_new_tokens else ""
        raise ValueError(f"{name} has {len(ids):,} tokens; the model reads {max_prompt_len:,} at most{reason}.")
    return ids


class IncrementalDetokenizer:
    """Decodes ids one by one: the chunks of `add_token` and the last one of `flush` join to the full decode.

    This holds for any ids of a byte-level tokenizer; one with byte fallback may show invalid bytes differently.
    A chunk leaves out only bytes that may still become a character; it never waits for a space.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.window_ids: list[int] = []  # a few ids whose text was returned, as context, then the newest ones
        self.num_context_ids = 0
        self.num_returned = 0  # characters of the window's text

    def _decode(self, ids) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

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
    """The text of each token, or the name of a special token.

    The texts of ordinary tokens join to the full decode: the last token of a character has all of it.
    """
    detokenizer, special = IncrementalDetokenizer(tokenizer), set(tokenizer.all_special_ids)
    chunks = [(token, detokenizer.add_token(token)) for token in ids]
    texts = [tokenizer.convert_ids_to_tokens(token) if token in special else chunk for token, chunk in chunks]
    if texts:
        texts[-1] += detokenizer.flush()
    return texts


def train_tokenizer(
    sources, vocab_size: int, mixture_weights=None, max_characters: int = 24_000_000
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
            for text in documents(source):
                yield text[:remaining]
                remaining -= len(text)
                if remaining <= 0:
                    break

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    )
    special = dict(bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def encode_document(tokenizer, text: str) -> list[int]:
    """Token ids of one document after its begin-of-text token."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [start, *tokenizer(text, add_special_tokens=False)["input_ids"]]
