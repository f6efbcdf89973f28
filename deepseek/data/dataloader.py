"""Documents to tokens to shuffled blocks, with a state that resumes exactly.

- the documents of several sources are mixed in fixed proportions of tokens
- they are packed into blocks of equal length, each document after a begin-of-text token
- a seeded buffer, saved with the state, shuffles the blocks: their order depends on the seed and the text alone, so a
  resumed run reads what it would have read, on any machine
"""

import random
from collections.abc import Iterator
from copy import deepcopy

import torch

from deepseek.data.readers import documents, fingerprint, iter_documents
from deepseek.data.text_lines import DEFAULT_OPTIONS, DataError, ReadOptions, note
from deepseek.data.tokenizer import encode_document

HELD_OUT_FRACTION = 0.01  # of the characters
MIN_HELD_OUT = 2000  # characters to hold out at a time: whole stories, and long enough to measure anything


def hold_out(text: str, num_characters: int, num_held_out: int) -> int:
    """Where the held-out rest of a document begins, its length if there is none.

    `num_characters` of the source were read before it, `num_held_out` of them for validation. Whenever HELD_OUT_FRACTION of
    the text so far is MIN_HELD_OUT more than was held out, the document at hand gives its end, or all that it has.
    """
    due = int(HELD_OUT_FRACTION * (num_characters + len(text))) - num_held_out
    if due < MIN_HELD_OUT:
        return len(text)
    start = max(0, len(text) - due)
    ends = (text.find(mark, start, start + due // 2) + 1 for mark in "\n ")  # of the next line or word
    return start and next(filter(None, ends), start)


def held_out(source: str, max_documents: int, options: ReadOptions = DEFAULT_OPTIONS) -> list[str]:
    """The first documents, or ends of documents, that `PackedDataLoader(skip_held_out=True)` leaves out."""
    texts: list[str] = []
    num_characters = num_held_out = 0
    for text in documents(source, options):
        if rest := text[hold_out(text, num_characters, num_held_out) :]:
            texts.append(rest)
        num_characters, num_held_out = num_characters + len(text), num_held_out + len(rest)
        if len(texts) == max_documents:
            break
    fraction = f"{num_held_out:,} of {num_characters:,}" if texts else f"none of {num_characters:,}"
    note(f"data {source!r}: {fraction} characters are held out for validation.")
    return texts


class PackedDataLoader:
    """An endless iterator over blocks of token ids, int64 tensors of shape (seq_len,).

    Tokens come from the sources in proportion to `mixture_weights` (default: even); a source that ends starts again.
    `skip_held_out` leaves out what `held_out` returns. After `load_state_dict(state)`, the blocks that came after
    `state_dict()` follow, and no earlier document is read again. Raises DataError for a source that cannot be read
    or holds less than one block.
    """

    BUFFER_BLOCKS = 1024  # to shuffle among
    # Key of the state: attribute.
    STATE = dict(fingerprints="fingerprints", positions="positions", characters="num_characters", held_out="num_held_out",
                 drawn="num_tokens", pending="pending_ids", count="num_blocks", buffer="buffer")  # fmt: skip

    def __init__(
        self,
        sources,
        tokenizer,
        seq_len: int,
        seed: int = 0,
        mixture_weights=None,
        skip_held_out: bool = False,
        options: ReadOptions = DEFAULT_OPTIONS,
    ):
        self.sources, self.options = list(sources), options
        self.mixture_weights = list(mixture_weights or [1.0] * len(self.sources))
        self.tokenizer, self.seq_len, self.seed, self.skip_held_out = tokenizer, seq_len, seed, skip_held_out
        self.fingerprints = [fingerprint(source) for source in self.sources]
        self.streams = [self._documents(index) for index in range(len(self.sources))]
        self.positions = [None] * len(self.sources)
        self.num_characters = [0] * len(self.sources)  # read in the current pass over each source
        self.num_held_out = [0] * len(self.sources)  # of them
        self.num_tokens = [0] * len(self.sources)  # read from each source
        self.pending_ids: list[int] = []  # read, but not yet in a block
        self.buffer = torch.empty(0, seq_len, dtype=torch.int32)
        self.num_blocks = 0  # returned

    def __iter__(self):
        return self

    def __next__(self) -> torch.Tensor:
        if not len(self.buffer):
            self.buffer = torch.stack([self._pack() for _ in range(self.BUFFER_BLOCKS)])
        slot = random.Random(f"{self.seed} {self.num_blocks}").randrange(self.BUFFER_BLOCKS)
        block = self.buffer[slot].long()
        self.buffer[slot] = self._pack()
        self.num_blocks += 1
        return block

    def _pack(self) -> torch.Tensor:
        while len(self.pending_ids) < self.seq_len:
            index = min(range(len(self.sources)), key=lambda i: self.num_tokens[i] / self.mixture_weights[i])
            ids = encode_document(self.tokenizer, next(self.streams[index]))
            self.num_tokens[index] += len(ids)
            self.pending_ids += ids
        block, self.pending_ids = self.pending_ids[: self.seq_len], self.pending_ids[self.seq_len :]
        return torch.tensor(block, dtype=torch.int32)

    def _documents(self, index: int) -> Iterator[str]:
        """The training documents of a source from its position on, again and again."""
        source = self.sources[index]
        while True:
            for text, position in iter_documents(source, self.positions[index], self.options):
                self.positions[index] = position
                so_far = self.num_characters[index], self.num_held_out[index]
                end = hold_out(text, *so_far) if self.skip_held_out else len(text)
                self.num_characters[index] += len(text)
                self.num_held_out[index] += len(text) - end
                if end:
                    yield text[:end]
            if not (self.num_tokens[index] and self.num_characters[index]):
                raise DataError(f"data {source!r} holds no text to train on.")
            if self.num_tokens[index] < self.seq_len:
                amount = f"less than one block of {self.seq_len} tokens"
                if len(self.sources) == 1:
                    raise DataError(f"data {source!r} holds {amount}; add text, or choose a smaller max_seq_len.")
                note(f"data {source!r} holds {amount}; it is read again and again.")
            self.positions[index], self.num_characters[index], self.num_held_out[index] = None, 0, 0

    def close(self) -> None:
        """Closes the open files."""
        for stream in self.streams:
            stream.close()

    def state_dict(self) -> dict:
        """JSON values, and the shuffle buffer as an int32 tensor (BUFFER_BLOCKS, seq_len), or (0, seq_len) at first."""
        return deepcopy({key: getattr(self, attribute) for key, attribute in self.STATE.items()})

    def load_state_dict(self, state: dict) -> None:
        """Resumes where `state` was saved. Raises DataError if a source has changed since."""
        if "positions" not in state:
            raise DataError("the checkpoint is of an older version, without positions; use it with --init-from.")
        for source, before, now in zip(self.sources, state["fingerprints"], self.fingerprints):
            if before != now:
                raise DataError(f"data {source!r} has changed since the run read it: it was {before}, it is {now}.")
        self.close()
        self.streams = [self._documents(index) for index in range(len(self.sources))]
        for key, attribute in self.STATE.items():
            if key in state:  # version 0.1 held out whole documents, and counted those
                setattr(self, attribute, deepcopy(state[key]))
