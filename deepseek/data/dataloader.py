"""Text for training: documents -> tokens -> shuffled blocks, with a cursor that can be saved.

- documents of several sources are mixed in fixed mixture_weights
- packed into blocks of equal length, each document after a begin-of-text token
- shuffled by a seeded buffer that is part of the cursor, so a resumed run reads exactly what it would have read, on
  any machine: the order depends on the seed and the text alone
"""

import random
from collections.abc import Iterator

import torch

from deepseek.data.readers import DataError, documents, fingerprint, iter_documents
from deepseek.data.tokenizer import encode_document

HOLD_OUT_EVERY = 50  # every 50th document of a source is for validation where no validation text is named


def is_held_out(index: int) -> bool:
    """Whether the document of this number, from 0 in its source, is for validation."""
    return index % HOLD_OUT_EVERY == 1


def held_out(source: str) -> Iterator[str]:
    """Every 50th document of a source: what `Blocks` leaves out when told to."""
    return (text for index, text in enumerate(documents(source)) if is_held_out(index))


class PackedDataLoader:
    """An endless iterator over blocks of `context` token ids, int64 tensors of shape (context,).

    Sources are read side by side, each from its start again when it ends, so that the tokens drawn from them keep to
    `mixture_weights` (default: even). `skip_held_out` leaves the documents of `held_out` to validation.
    `state()` is the whole cursor; after `restore(state)` the same blocks follow, and no document before it is read
    again. Raises DataError, also for a source that holds less than a block.
    """

    BUFFER = 1024  # blocks to shuffle among

    def __init__(
        self, sources, tokenizer, seq_len: int, seed: int = 0, mixture_weights=None, skip_held_out: bool = False
    ):
        self.sources = list(sources)
        self.mixture_weights = list(mixture_weights or [1.0] * len(self.sources))
        self.tokenizer, self.seq_len, self.seed, self.skip_held_out = tokenizer, seq_len, seed, skip_held_out
        self.fingerprints = [fingerprint(source) for source in self.sources]
        self.readers = [None] * len(self.sources)
        self.positions = [None] * len(self.sources)  # where each reader is
        self.documents = [0] * len(self.sources)  # read in the current pass over each source
        self.drawn = [0] * len(self.sources)  # tokens so far from each source
        self.pending: list[int] = []  # tokens read but not yet in a block
        self.buffer = torch.empty(0, seq_len, dtype=torch.int32)
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
        while len(self.pending) < self.seq_len:
            source = min(range(len(self.sources)), key=lambda i: self.drawn[i] / self.mixture_weights[i])
            ids = encode_document(self.tokenizer, self._document(source))
            self.drawn[source] += len(ids)
            self.pending += ids
        block, self.pending = self.pending[: self.seq_len], self.pending[self.seq_len :]
        return torch.tensor(block, dtype=torch.int32)

    def _document(self, source: int) -> str:
        for _ in range(2):
            if self.readers[source] is None:
                self.readers[source] = iter_documents(self.sources[source], self.positions[source])
            for text, position in self.readers[source]:
                self.positions[source] = position
                self.documents[source] += 1
                if not (self.skip_held_out and is_held_out(self.documents[source] - 1)):
                    return text
            if self.drawn[source] < self.seq_len:
                break
            self.readers[source], self.positions[source], self.documents[source] = None, None, 0
        raise DataError(
            f"data {self.sources[source]!r} holds no text to train on."
            if not self.drawn[source]
            else f"data {self.sources[source]!r} holds {self.drawn[source]} tokens to train on, "
            f"less than one block of {self.seq_len}; give it more text or choose a smaller context."
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
