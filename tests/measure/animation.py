"""README's animation of the board and the Walk: `python tests/measure/animation.py assets/screenshots/playground.webp`.

Opens the app in Chromium, steps through the first text on the Playground with the arrow key, then follows one token down the
Walk. Writes an animated WebP of at most MAX_BYTES.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from measure.chromium import chromium_page
from running import app_in

SIZE, WIDTH = {"width": 1280, "height": 800}, 960  # of the window, and of the picture
TOKENS, SCROLLS = 22, 26  # frames of each part
TOKEN_MS, SCROLL_MS, PAUSE_MS = 220, 140, 1400
MAX_BYTES = 3_000_000


def frame(page) -> Image.Image:
    """What the window shows, made smaller."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return picture.resize((WIDTH, WIDTH * SIZE["height"] // SIZE["width"]), Image.Resampling.LANCZOS)


def record(page, url: str) -> tuple[list[Image.Image], list[int]]:
    """(frames, milliseconds of each)."""
    frames, durations = [], []

    def take(milliseconds):
        frames.append(frame(page))
        durations.append(milliseconds)

    page.goto(url)
    page.locator("#strip .token").nth(40).wait_for(timeout=120_000)
    page.wait_for_timeout(3000)  # the board and the details of the first text
    page.locator("#strip .token").first.click()
    for _ in range(TOKENS):
        page.wait_for_timeout(150)
        take(TOKEN_MS)
        page.keyboard.press("ArrowRight")
    durations[-1] = PAUSE_MS
    page.get_by_role("tab", name="Walk", exact=True).click()
    page.locator("#walk svg").first.wait_for(timeout=60_000)
    page.wait_for_timeout(4000)  # until it is drawn
    top = page.evaluate("document.querySelector('#walk svg').getBoundingClientRect().top + scrollY - 60")
    height = page.evaluate("document.querySelector('#walk svg').getBoundingClientRect().height") - SIZE["height"] + 120
    for step in range(SCROLLS):
        page.evaluate("y => scrollTo(0, y)", top + height * step / (SCROLLS - 1))
        page.wait_for_timeout(100)
        take(SCROLL_MS)
    durations[-1] = PAUSE_MS
    return frames, durations


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, app_in(Path(folder)) as app, chromium_page(viewport=SIZE) as page:
        (first, *rest), durations = record(page, app.url)
    for quality in (80, 65, 50, 35):
        options = dict(duration=durations, loop=0, quality=quality, method=4)
        first.save(args.picture, save_all=True, append_images=rest, **options)
        if args.picture.stat().st_size <= MAX_BYTES:
            break
    print(f"{args.picture}: {args.picture.stat().st_size:,} bytes at quality {quality}, {1 + len(rest)} frames")


if __name__ == "__main__":
    main()
