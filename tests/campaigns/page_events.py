"""Windows whose users act faster than answers come: `python tests/campaigns/page_events.py`.

Each window presses keys on the sliders of the Attention tab, one to three at random moments, and then waits for the picture of
the sliders' last positions. Prints one line of JSON: how often it came, and how often the picture of an older event stayed.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from running import app_in
from ui.browser.actions import new_page, open_page, open_tab
from ui.browser.conftest import CHROMIUM, QUIET

TIMEOUT_MS = 20_000


def press_keys(url: str, seconds: float, seed: int) -> tuple[int, int]:
    """(right, wrong) last pictures of one window."""
    moments, outcomes = random.Random(seed), {True: 0, False: 0}
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET) as browser:
        page = new_page(browser.new_context())
        open_page(page, url)
        open_tab(page, "Attention")
        title = page.locator("#attention .gtitle")
        expect(title).to_be_visible()
        sliders = {name: page.get_by_label(f"range slider for {name}").first for name in ("layer", "head")}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(moments.randint(1, 3)):
                sliders[moments.choice(["layer", "head"])].press(moments.choice(["ArrowRight", "ArrowLeft"]))
                time.sleep(moments.choice([0, 0, 0.02, 0.1, 0.3]))
            wanted = ", ".join(f"{name} {slider.input_value()}" for name, slider in sliders.items())
            try:
                expect(title).to_have_text(wanted)
                outcomes[True] += 1
            except AssertionError:
                outcomes[False] += 1
    return outcomes[True], outcomes[False]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=150)
    args = parser.parse_args()
    with app_in(Path(tempfile.mkdtemp())) as app, ProcessPoolExecutor(args.windows) as pool:
        count = args.windows
        results = list(pool.map(press_keys, [app.url] * count, [args.seconds] * count, range(count)))
    right, wrong = map(sum, zip(*results))
    print(json.dumps({"windows": count, "last pictures": right + wrong, "of an older event": wrong}))


if __name__ == "__main__":
    main()
