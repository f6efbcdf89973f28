"""Sessions without the weight that gradio gives each of them.

gradio 6.31 describes all of the page's components anew for every session, to hand them out again by a deep link: 50 ms
of the event loop and a megabyte, and every page that opens and every call of an endpoint is a session. Here a component is
described when its value changes, and the others when somebody asks.
"""

from copy import copy

from gradio import state_holder


class LightSession(state_holder.SessionState):
    """As gradio's, of a page `blocks`."""

    def __init__(self, blocks):
        self.blocks_config = copy(blocks.default_config)
        self.config_values, self.state_data, self._state_ttl = {}, {}, {}
        self.is_closed, self.STATE_TTL_WHEN_CLOSED = False, 3600

    @property
    def components(self):
        for key, block in self.blocks_config.blocks.items():
            if key not in self.config_values:
                self.config_values[key] = self.blocks_config.config_for_block(key, [], block)
        return super().components


def apply_patches() -> None:
    """From now on gradio makes its sessions so."""
    state_holder.SessionState = LightSession
