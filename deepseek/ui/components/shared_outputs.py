"""Outputs that several of a page's events write to: the newest event wins.

gradio lets all running events write, so that two samples would take turns in one strip. Here the page sends with each event the
time at which the user caused it, since two requests may arrive in either order. Once one has something to show, the answers of
older ones are dropped and their work ends; one that is refused before changes nothing. The page draws each event's answers in
order, but not those of two events: it may still have old ones to draw when a newer event answers. So a newer event hands its
answers to the one that streams already.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from itertools import chain
from threading import Lock

import gradio as gr

from deepseek.ui.generation import QUICK_QUEUE

SEND_TIME_JS = "(turns, time, ...values) => [turns, performance.now(), ...values]"


class Turns:
    """What a page's events that write to the same outputs know of each other."""

    def __init__(self):
        self.lock = Lock()
        self.shown = 0.0  # time of the newest event that has shown something, in ms since the page was opened
        self.added = {}  # function -> time of the newest event for which it has added to that
        self.stopped = 0.0  # the events up to this time end
        self.is_streaming = False
        self.handed: Iterator | None = None  # the answers with which the event that streams goes on

    def __deepcopy__(self, memo):  # gradio copies a State's first value for every page
        return Turns()

    def stop(self, time: float | None) -> None:
        """Ends all events that the user caused before."""
        self.stopped = max(time or 0.0, self.stopped)

    def next_answers(self) -> Iterator | None:
        """What a newer event has handed over; None if nothing, and from then on no event streams."""
        with self.lock:
            handed, self.handed = self.handed, None
            self.is_streaming = handed is not None
            return handed


class Turn:
    """An event's turn at the outputs."""

    def __init__(self, turns: Turns, time: float | None):  # None is what an empty number sends, never the page
        self.turns, self.time = turns, time or 0.0

    def is_over(self) -> bool:
        """Whether to work on is of no use: a newer event has shown something, or the user has pressed Stop."""
        return self.time < max(self.turns.shown, self.turns.stopped)

    def show(self, answers: Iterator, streams: bool) -> Iterator | None:
        """The answers if this event is to send them itself, None if its turn is over or the event that streams sends them."""
        with self.turns.lock:
            if self.is_over():
                return None
            self.turns.shown = self.time
            if self.turns.is_streaming:
                self.turns.handed = answers
                return None
            self.turns.is_streaming = streams
            return answers


def take_turns(function: Callable) -> Callable:
    """The event function that has the page's Turns and the event's time as its first inputs in place of `function`'s Turn."""

    @wraps(function)
    def respond(turns, time, *values):
        turn = Turn(turns, time)
        answer = function(turn, *values)
        shows = answer != gr.skip() and turn.show(iter([answer]), streams=False)
        return answer if shows else gr.skip()

    @wraps(function)
    def stream(turns, time, *values):
        turn = Turn(turns, time)
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

    return _with_time(stream if inspect.isgeneratorfunction(function) else respond, _parameters(function)[1:])


def add_to_turn(function: Callable) -> Callable:
    """The event function that has the page's Turns and the event's time as its first inputs, before those of `function`."""

    @wraps(function)
    def respond(turns, time, *values):
        shown, time = turns.shown, time or 0.0
        answer = function(*values)
        if turns.shown != shown or time < turns.added.get(function, 0):
            return gr.skip()
        turns.added[function] = time
        return answer

    return _with_time(respond, _parameters(function))


def _parameters(function: Callable) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _with_time(respond: Callable, parameters: list[inspect.Parameter]) -> Callable:
    """`respond`, which says that it has these parameters after its first two: gradio looks for gr.EventData there."""
    first = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("turns", "time")]
    respond.__signature__ = inspect.Signature([*first, *parameters])
    return respond


class SharedOutputs:
    """The outputs, and the listeners that write to them. `options` are those of a gradio event."""

    def __init__(self, outputs: Sequence, **options):
        self.outputs = list(outputs)
        self.turn_inputs = [gr.State(Turns()), gr.Number(0, label="time", visible=False)]
        self.options = dict(api_visibility="private", show_progress="hidden", js=SEND_TIME_JS) | options

    def on(
        self,
        events: Callable | Sequence[Callable],
        function: Callable,
        inputs: Sequence = (),
        outputs: Sequence | None = None,
        **options,
    ):
        """Has `function(turn, *inputs)` answer the events, or stream answers until `turn.is_over()`. Returns the listener.

        A newer event ends a stream; it waits for an answer, and only the newest does. `outputs` are other components than all
        that are shared.
        """
        mode = "multiple" if inspect.isgeneratorfunction(function) else "always_last"
        return self._listen(
            events, take_turns(function), inputs, self.outputs if outputs is None else outputs, mode, options
        )

    def add(
        self, events: Callable | Sequence[Callable], function: Callable, inputs: Sequence, outputs: Sequence, **options
    ):
        """Has `function(*inputs)` answer events about what is shown; dropped once something else, or a newer one, is."""
        return self._listen(events, add_to_turn(function), inputs, outputs, "always_last", options)

    def _listen(self, events, function, inputs, outputs, mode, options):
        listen = events if callable(events) else partial(gr.on, events)
        options = dict(trigger_mode=mode) | self.options | options
        return listen(function, [*self.turn_inputs, *inputs], outputs, **options)

    def stop_on(self, event: Callable) -> None:
        """Ends all events at `event`; what they have shown stays."""
        event(Turns.stop, self.turn_inputs, None, js=SEND_TIME_JS, **QUICK_QUEUE)
