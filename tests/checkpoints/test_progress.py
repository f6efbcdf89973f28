"""How far a slow read is, told to whoever waits for it."""

import io
import threading

import pytest
import torch

import deepseek
from deepseek.checkpoints import progress
from deepseek.checkpoints.loading import load
from deepseek.checkpoints.progress import EXPERTS, WEIGHTS, on_terminal, report, reported, waiting


def test_weights_are_told_of_as_they_load_and_experts_as_a_text_goes_through_the_layers(checkpoint):
    size, told = sum(parameter.nbytes for parameter in load(checkpoint, torch.float32)[0].parameters()), []
    with reported(lambda *what: told.append(what)):
        model, tokenizer = load(checkpoint, torch.float32, max_memory=int(1.1 * size))
        fractions = [fraction for what, fraction in told if what == WEIGHTS]
        assert len(fractions) > 10 and fractions == sorted(fractions) and fractions[-1] == 1
        assert told[len(fractions) :] == [(EXPERTS, 0.5), (EXPERTS, 1.0)]  # it reads a token, to see that it can
        told.clear()
        deepseek.trace(model, tokenizer, "Once upon a time")
    assert told == [(EXPERTS, 0.5), (EXPERTS, 1.0)]  # it has two MoE layers
    deepseek.trace(model, tokenizer, "Once upon a time")
    assert len(told) == 2, "nobody waits"


def test_a_read_in_a_thread_says_how_far_it_is_and_what_failed():
    seen, may_end = [], threading.Event()

    def read():
        report("reading", 0.25)
        assert may_end.wait(9)

    for text in waiting(read):
        seen.append(text)
        may_end.set()
    assert seen == ["reading: 25%"]
    with pytest.raises(ValueError, match="invalid literal"):
        list(waiting(lambda: int("x")))


def test_a_terminal_shows_what_takes_long_behind_its_cursor(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def shown(stream, *fractions):
        show = on_terminal(stream)
        for fraction in fractions:
            show("reading", fraction)
        return stream.getvalue()

    assert shown(Terminal(), 0.5) == ""
    monkeypatch.setattr(progress, "QUICK_S", -1)
    assert shown(Terminal(), 0.5, 1) == "\0337 reading: 50%\033[K\0338" + "\0337\033[K\0338"
    assert shown(io.StringIO(), 0.5) == "", "a file holds none of it"
