"""Text for training: documents -> tokens -> shuffled blocks, with a cursor that can be saved.

- documents of several sources are mixed in fixed shares
- packed into blocks of equal length, each document after a begin-of-text token
- shuffled by a seeded buffer that is part of the cursor, so a resumed run reads exactly what it would have read, on
  any machine: the order depends on the seed and the text alone
"""

import random
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from deepseek.sources import END_OF_TEXT, DataError, documents, fingerprint, read

HOLD_OUT = 50  # every 50th document of a source is for validation where no validation text is named


def is_held_out(index: int) -> bool:
    """Whether the document of this number, from 0 in its source, is for validation."""
    return index % HOLD_OUT == 1


def held_out(source: str) -> Iterator[str]:
    """Every 50th document of a source: what `Blocks` leaves out when told to."""
    return (text for index, text in enumerate(documents(source)) if is_held_out(index))


def learn_tokenizer(sources, vocab_size: int, shares=None, sample: int = 24_000_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE (Sennrich et al., 2016; GPT-2's splitting) learned from about `sample` characters.

    `shares` says how much of each source (default: even).

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

    shares = shares or [1.0] * len(sources)

    def texts():
        for source, share in zip(sources, shares):
            left = int(sample * share / sum(shares))
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


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of one document with its begin-of-text token first."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [start, *tokenizer(text, add_special_tokens=False)["input_ids"]]


class Blocks:
    """An endless iterator over blocks of `context` token ids, int64 tensors of shape (context,).

    Sources are read side by side, each from its start again when it ends, so that the tokens drawn from them keep to
    `shares` (default: even). `skip_held_out` leaves the documents of `held_out` to validation.
    `state()` is the whole cursor; after `restore(state)` the same blocks follow, and no document before it is read
    again. Raises DataError, also for a source that holds less than a block.
    """

    BUFFER = 1024  # blocks to shuffle among

    def __init__(self, sources, tokenizer, context: int, seed: int = 0, shares=None, skip_held_out: bool = False):
        self.sources = list(sources)
        self.shares = list(shares or [1.0] * len(self.sources))
        self.tokenizer, self.context, self.seed, self.skip_held_out = tokenizer, context, seed, skip_held_out
        self.fingerprints = [fingerprint(source) for source in self.sources]
        self.readers = [None] * len(self.sources)
        self.positions = [None] * len(self.sources)  # where each reader is
        self.documents = [0] * len(self.sources)  # read in the current pass over each source
        self.drawn = [0] * len(self.sources)  # tokens so far from each source
        self.pending: list[int] = []  # tokens read but not yet in a block
        self.buffer = torch.empty(0, context, dtype=torch.int32)
        self.count = 0  # blocks handed out

    def __iter__(self):
        return self

    def __next__(self) -> torch.Tensor:
        if not len(self.buffer):
            self.buffer = torch.stack([self._pack() for _ in range(self.BUFFER)])
        slot = random.Random(f"{self.seed} {self.count}").randrange(self.BUFFER)
        block = self.buffer[slot].long()
        self.buffer[slot] = self._pack()
        self.count += 1
        return block

    def _pack(self) -> torch.Tensor:
        while len(self.pending) < self.context:
            source = min(range(len(self.sources)), key=lambda i: self.drawn[i] / self.shares[i])
            ids = encode(self.tokenizer, self._document(source))
            self.drawn[source] += len(ids)
            self.pending += ids
        block, self.pending = self.pending[: self.context], self.pending[self.context :]
        return torch.tensor(block, dtype=torch.int32)

    def _document(self, source: int) -> str:
        for _ in range(2):
            if self.readers[source] is None:
                self.readers[source] = read(self.sources[source], self.positions[source])
            for text, position in self.readers[source]:
                self.positions[source] = position
                self.documents[source] += 1
                if not (self.skip_held_out and is_held_out(self.documents[source] - 1)):
                    return text
            if self.drawn[source] < self.context:
                break
            self.readers[source], self.positions[source], self.documents[source] = None, None, 0
        raise DataError(
            f"data {self.sources[source]!r} holds no text to train on."
            if not self.drawn[source]
            else f"data {self.sources[source]!r} holds {self.drawn[source]} tokens to train on, "
            f"less than one block of {self.context}; give it more text or choose a smaller context."
        )

    def close(self) -> None:
        """Closes the open files."""
        for reader in filter(None, self.readers):
            reader.close()

    def state(self) -> dict:
        """The cursor: JSON values, and the shuffle buffer as an int32 tensor (1024, context)."""
        return {
            "fingerprints": self.fingerprints,
            "positions": list(self.positions),
            "documents": list(self.documents),
            "drawn": list(self.drawn),
            "pending": list(self.pending),
            "count": self.count,
            "buffer": self.buffer.clone(),
        }

    def restore(self, state: dict) -> None:
        """Goes to where `state` was taken; raises DataError where a source is not the one that was read."""
        if "positions" not in state:
            raise DataError("the commit is of an older version, without positions; start from it with --from.")
        for source, was, now in zip(self.sources, state["fingerprints"], self.fingerprints):
            if was != now:
                raise DataError(f"data {source!r} has changed since the run read it: it was {was}, it is {now}.")
        self.positions, self.documents = list(state["positions"]), list(state["documents"])
        self.drawn, self.pending = list(state["drawn"]), list(state["pending"])
        self.count, self.buffer = state["count"], state["buffer"].clone()
        self.close()
        self.readers = [None] * len(self.sources)
