"""Text for training: sources -> documents -> tokens -> shuffled blocks, with a cursor that can be saved.

- a source is the built-in corpus, a file (.txt, .jsonl, .csv, .parquet, each also as .xz or .gz), or a data set of the Hub
- documents of several sources are mixed in fixed shares
- packed into blocks of equal length, each document after a begin-of-text token
- shuffled by a seeded buffer that is part of the cursor, so a resumed run reads exactly what it would have read
"""

import glob
import gzip
import inspect
import itertools
import lzma
import random
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
BUILT_IN = "builtin"
HOLD_OUT = 50  # every 50th document of a source is for validation where no validation text is named
LONGEST_DOCUMENT = 1 << 20  # characters; a longer text is cut at a line's end
NOT_PROSE = {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__", "topics.py"}
TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
UNPACK = {".xz": lzma.open, ".gz": gzip.open}


class DataError(ValueError):
    """Text that cannot be read; the message is one sentence that names it and says why."""


def documents(source: str) -> Iterator[str]:
    """The documents of one source, in their order. `source` is "builtin", a file's path or a Hub id.

    A .txt file is cut at lines that hold only <|endoftext|>; of a table the column "text" is read, or the first column
    of strings. Raises DataError.
    """
    if source == BUILT_IN:
        return _built_in()
    path = Path(source)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] and suffixes[-1] in UNPACK and len(suffixes) > 1 else (suffixes or [""])[-1]
    if path.is_file():
        if kind == ".txt":
            return _text_file(path)
        if kind in TABLES:
            return _table(TABLES[kind], source, data_files=glob.escape(str(path)))
        raise DataError(f"data {source!r} ends in {path.suffix!r}; it must be .txt, {', '.join(TABLES)}, .xz or .gz.")
    if source.count("/") == 1 and not path.suffix:
        return _table(source, source)
    raise DataError(f"data {source!r} is not there; it must be {BUILT_IN!r}, a file or a Hub id such as name/dataset.")


def _text_file(path: Path) -> Iterator[str]:
    lines, size, offset = [], 0, 0
    with UNPACK.get(path.suffix.lower(), open)(path, "rb") as file:
        try:
            for raw in file:
                line = raw.decode("utf-8")
                offset += len(raw)
                end = line.strip() == END_OF_TEXT
                if not end:
                    lines.append(line)
                    size += len(line)
                if end or size > LONGEST_DOCUMENT:
                    if text := "".join(lines).strip("\r\n"):
                        yield text
                    lines, size = [], 0
        except UnicodeDecodeError as error:
            raise DataError(f"data {str(path)!r} is not UTF-8 text at byte {offset + error.start}.") from error
        except (lzma.LZMAError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"data {str(path)!r} is not a whole compressed file: {error}.") from error
    if text := "".join(lines).strip("\r\n"):
        yield text


def _table(builder: str, source: str, **options) -> Iterator[str]:
    import datasets  # slow to import, and only here needed

    try:
        rows = datasets.load_dataset(builder, split="train", streaming=True, **options)
        column, found, row = None, False, None
        for row in rows:
            if column is None:
                strings = [name for name, value in row.items() if isinstance(value, str)]
                column = "text" if "text" in row else next(iter(strings), None)
            if isinstance(text := row.get(column), str) and text:
                found = True
                yield text
        if not found:
            raise DataError(f"data {source!r} has no column of text; its columns are {', '.join(row or ['none'])}.")
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"data {source!r} cannot be read: {reason}") from error


def _built_in() -> Iterator[str]:
    """The text that ships with Python: its language reference, then docstring and source of every library module."""
    from pydoc_data.topics import topics

    yield from topics.values()
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if NOT_PROSE & set(parts):
            continue
        try:
            source = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if len(source) > 200:
            yield inspect.cleandoc(source)[:LONGEST_DOCUMENT]


def held_out(source: str) -> Iterator[str]:
    """Every 50th document of a source: what `Blocks` leaves out when told to."""
    return (text for index, text in enumerate(documents(source)) if index % HOLD_OUT == 1)


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
    `state()` is the whole cursor; after `restore(state)` the same blocks follow.
    """

    BUFFER = 1024  # blocks to shuffle among

    def __init__(self, sources, tokenizer, context: int, seed: int = 0, shares=None, skip_held_out: bool = False):
        self.sources = list(sources)
        self.shares = list(shares or [1.0] * len(self.sources))
        self.tokenizer, self.context, self.seed, self.skip_held_out = tokenizer, context, seed, skip_held_out
        self.readers = [None] * len(self.sources)
        self.read = [0] * len(self.sources)  # documents of the current pass over each source
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
                self.readers[source] = documents(self.sources[source])
                for _ in itertools.islice(self.readers[source], self.read[source]):
                    pass
            for text in self.readers[source]:
                self.read[source] += 1
                if not self.skip_held_out or (self.read[source] - 1) % HOLD_OUT != 1:
                    return text
            self.readers[source], self.read[source] = None, 0
        raise DataError(f"data {self.sources[source]!r} holds no text to train on.")

    def close(self) -> None:
        """Closes the open files."""
        for reader in filter(None, self.readers):
            reader.close()

    def state(self) -> dict:
        """The cursor: JSON values, and the shuffle buffer as an int32 tensor (1024, context)."""
        return {
            "read": list(self.read),
            "drawn": list(self.drawn),
            "pending": list(self.pending),
            "count": self.count,
            "buffer": self.buffer.clone(),
        }

    def restore(self, state: dict) -> None:
        self.read, self.drawn = list(state["read"]), list(state["drawn"])
        self.pending, self.count, self.buffer = list(state["pending"]), state["count"], state["buffer"].clone()
        self.readers = [None] * len(self.sources)
