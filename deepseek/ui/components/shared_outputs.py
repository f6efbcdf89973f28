"""Outputs that several of a page's events write to: the newest event wins.

gradio lets all running events write, so that two samples would take turns in one strip. Here the events that write to the same
outputs take numbers. Once one has something to show, the answers of older ones are dropped and their work ends; one that is
refused before changes nothing. The page draws each event's answers in order, but not those of two events: it may still have
old ones to draw when a newer event answers. So a newer event hands its answers to the one that streams already.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import chain, count
from threading import Lock

import gradio as gr

from deepseek.ui.generation import QUICK_QUEUE


class Turns:
    """What a page's events that write to the same outputs know of each other."""

    def __init__(self):
        self.numbers, self.lock = count(1), Lock()
        self.shown = 0  # number of the newest event that has shown something
        self.added = {}  # function -> number of the newest event for which it has added to that
        self.stopped = 0  # the events up to this number end
        self.is_streaming = False
        self.handed: Iterator | None = None  # the answers with which the event that streams goes on

    def __deepcopy__(self, memo):  # gradio copies a State's first value for every page
        return Turns()

    def stop(self) -> None:
        """Ends all events that have begun."""
        self.stopped = next(self.numbers)

    def next_answers(self) -> Iterator | None:
        """What a newer event has handed over; None if nothing, and from then on no event streams."""
        with self.lock:
            handed, self.handed = self.handed, None
            self.is_streaming = handed is not None
            return handed


class Turn:
    """An event's turn at the outputs."""

    def __init__(self, turns: Turns):
        self.turns, self.number = turns, next(turns.numbers)

    def is_over(self) -> bool:
        """Whether to work on is of no use: a newer event has shown something, or the user has pressed Stop."""
        return self.number < max(self.turns.shown, self.turns.stopped)

    def show(self, answers: Iterator, streams: bool) -> Iterator | None:
        """The answers if this event is to send them itself, None if its turn is over or the event that streams sends them."""
        with self.turns.lock:
            if self.is_over():
                return None
            self.turns.shown = self.number
            if self.turns.is_streaming:
                self.turns.handed = answers
                return None
            self.turns.is_streaming = streams
            return answers


def take_turns(function: Callable) -> Callable:
    """The event function that has the page's Turns as its first input in place of `function`'s Turn."""

    @wraps(function)
    def respond(turns, *values):
        turn = Turn(turns)
        answer = function(turn, *values)
        shows = answer != gr.skip() and turn.show(iter([answer]), streams=False)
        return answer if shows else gr.skip()

    @wraps(function)
    def stream(turns, *values):
        turn = Turn(turns)
        answers = function(turn, *values)
        first = next(answers, gr.skip())  # raises what refuses the event, before it takes its turn
        answers = first != gr.skip() and turn.show(chain([first], answers), streams=True)
        while answers:
            try:
                for answer in answers:
                    if turns.handed:
                        break
                    yield answer
                answers = turns.next_answers()
            except GeneratorExit:  # the page is closed
                turns.next_answers()
                raise
            except Exception:
                if not (answers := turns.next_answers()):
                    raise
        yield gr.skip()  # gradio sends again what comes last

    return stream if inspect.isgeneratorfunction(function) else respond


def add_to_turn(function: Callable) -> Callable:
    """The event function that has the page's Turns as its first input, before those of `function`."""

    @wraps(function)
    def respond(turns, *values):
        number, shown = next(turns.numbers), turns.shown
        answer = function(*values)
        if turns.shown != shown or number < turns.added.get(function, 0):
            return gr.skip()
        turns.added[function] = number
        return answer

    first = inspect.Parameter("turns", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    respond.__signature__ = inspect.Signature([first, *inspect.signature(function).parameters.values()])
    return respond


class SharedOutputs:
    """The outputs, and the listeners that write to them. `options` are those of a gradio event."""

    def __init__(self, outputs: Sequence, **options):
        self.outputs, self.turns = list(outputs), gr.State(Turns())
        # "multiple": no click is ignored while an older event still runs
        self.options = dict(api_visibility="private", show_progress="hidden", trigger_mode="multiple") | options

    def on(
        self, event: Callable, function: Callable, inputs: Sequence = (), outputs: Sequence | None = None, **options
    ):
        """Has `function(turn, *inputs)` answer an event, or stream answers until `turn.is_over()`. Returns the listener.

        `outputs` are other components than all that are shared.
        """
        outputs = self.outputs if outputs is None else outputs
        return event(take_turns(function), [self.turns, *inputs], outputs, **self.options | options)

    def add(self, event: Callable, function: Callable, inputs: Sequence, outputs: Sequence, **options):
        """Has `function(*inputs)` answer an event about what is shown; dropped once something else, or a newer one, is."""
        return event(add_to_turn(function), [self.turns, *inputs], outputs, **self.options | options)

    def stop_on(self, event: Callable) -> None:
        """Ends all events at `event`; what they have shown stays."""
        event(Turns.stop, self.turns, None, **QUICK_QUEUE)
