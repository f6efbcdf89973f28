"""Between text and token ids: prompts checked on the way in, exact incremental text on the way out."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from deepseek.data.readers import END_OF_TEXT, documents

REPLACEMENT_CHARACTER = "\ufffd"  # what a decoder shows for bytes that are not yet, or never, a character


def encode_prompt(tokenizer, prompt, limit: int | None, room: int = 1, what: str = "prompt") -> list[int]:
    """Token ids of a prompt (text, or a list of ids), with the tokenizer's own special tokens.

    Raises ValueError, naming it `what`, for an empty one and for one that leaves fewer than `room` tokens of `limit`.
    """
    most = limit and limit - room
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"{what} is empty; it must hold at least one character that is not a space.")
        if limit and len(prompt) > 100 * limit:  # far too long to be worth encoding
            raise ValueError(f"{what} has {len(prompt):,} characters; the model reads {most:,} tokens at most.")
        # A lone surrogate, which a browser or JSON can send, is no character and cannot be encoded.
        ids = list(tokenizer(prompt.encode("utf-8", "replace").decode())["input_ids"])
    else:
        ids = list(prompt)
    if not ids:
        raise ValueError(f"{what} is empty; it must hold at least one token.")
    if limit and len(ids) > most:
        reason = " and needs room for one more" if room else ""
        raise ValueError(f"{what} has {len(ids):,} tokens; the model reads {most:,} at most{reason}.")
    return ids


class IncrementalDetokenizer:
    """Text of ids that come one by one. The chunks of `push` and the last one of `end` join to the full decode.

    (Of a byte-level tokenizer for any ids; one with byte fallback may show broken bytes otherwise than the whole does.)
    A chunk holds back bytes that may still become a character, and nothing else: no chunk waits for a space.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.window: list[int] = []  # ids whose text is not yet settled, after a few settled ones as their context
        self.settled = 0  # how many of the window are context
        self.sent = 0  # characters of the window's text already handed out

    def _decode(self, ids) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def push(self, token: int) -> str:
        """The text that is settled once `token` has come, "" while it ends within a character."""
        self.window.append(token)
        text = self._decode(self.window)
        ready = text.rstrip(REPLACEMENT_CHARACTER)
        chunk = ready[self.sent :]
        self.sent = max(self.sent, len(ready))
        if text == ready:
            # All of it is settled: the newest tokens alone are context enough for what follows, if they show as text
            # (some decoders strip the space that a text begins with).
            newest = self._decode(self.window[self.settled :])
            if newest.strip():
                self.window = self.window[self.settled :]
                self.settled, self.sent = len(self.window), len(newest)
        return chunk

    def end(self) -> str:
        """What was held back, as the decoder shows it."""
        rest = self._decode(self.window)[self.sent :]
        self.sent += len(rest)
        return rest


def token_texts(tokenizer, ids) -> list[str]:
    """The text of each token, such that they join to the text: a character of several tokens stands at its last one.

    Special tokens stand under their own name.
    """
    stream, texts = IncrementalDetokenizer(tokenizer), []
    special = set(tokenizer.all_special_ids)
    for token in ids:
        chunk = stream.push(token)
        texts.append(tokenizer.convert_ids_to_tokens(token) if token in special else chunk)
    if texts:
        texts[-1] += stream.end()
    return texts


def train_tokenizer(
    sources, vocab_size: int, mixture_weights=None, sample: int = 24_000_000
) -> PreTrainedTokenizerFast:
    """A byte-level BPE (Sennrich et al., 2016; GPT-2's splitting) learned from about `sample` characters.

    `mixture_weights` says how much of each source (default: even).

    Any text round-trips exactly. Its one special token, <|endoftext|> (id 0), begins every text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    mixture_weights = mixture_weights or [1.0] * len(sources)

    def texts():
        for source, share in zip(sources, mixture_weights):
            left = int(sample * share / sum(mixture_weights))
            for text in documents(source):
                yield text[:left]
                left -= len(text)
                if left <= 0:
                    break

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    )
    special = dict(bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def encode_document(tokenizer, text: str) -> list[int]:
    """Token ids of one document with its begin-of-text token first."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [start, *tokenizer(text, add_special_tokens=False)["input_ids"]]
