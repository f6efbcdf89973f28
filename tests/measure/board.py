"""What the live board costs, in one run on this machine: `python tests/measure/board.py`.

The same samples stream to a page with the board and to one whose board is kept from drawing, in turns: the ratio of their
tokens/s, and, as other work on the machine disturbs that, the processor time that the browser takes more, of all that two
cores have meanwhile (Linux). Then the frames per second while the text plays, and the time to draw one token of larger shapes.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from measure.chromium import chromium_page
from measure.streaming import browser_rate
from running import app_in

SHAPES = {"demo": (6, 8, 2), "OLMoE": (16, 64, 8), "48 x 128": (48, 128, 8)}  # layers, experts, experts per token
NO_BOARD = "if (location.search.endsWith('board=off')) addEventListener('text', event => event.stopImmediatePropagation(), true)"
FRAMES = """async () => {
  const board = document.querySelector('#board');
  board.querySelector('select').value = 16;
  board.querySelector('[aria-label=play]').click();
  const times = [];
  await new Promise(end => requestAnimationFrame(function frame(now) {
    times.push(now);
    if (now - times[0] < 3000) requestAnimationFrame(frame); else end();
  }));
  return 1000 * (times.length - 1) / (times[times.length - 1] - times[0]);
}"""
DRAW = """async ([layers, experts, width]) => {  // milliseconds of the longest task, for a text of 64 tokens
  const strip = document.querySelector('#strip-tokens'), rows = [...Array(layers).keys()];
  const expert = (i, row, k) => (i * 7 + row * 3 + k * 11) % experts;
  const tokens = [...Array(64).keys()].map(i => ({i, t: ' word', e: Object.fromEntries(rows.map(row =>
    [row, [...Array(width).keys()].map(k => [expert(i, row, k), 1 / (k + 2)])]))}));
  const ids = tokens.map(token => token.i), head = {ids: [], layers: rows, experts, depth: layers};
  const start = performance.now();
  strip.text = {head, ids, tokens};
  strip.dispatchEvent(new CustomEvent('text', {bubbles: true}));
  await new Promise(requestAnimationFrame);
  await new Promise(end => setTimeout(end));
  return performance.now() - start;
}"""


def browser_seconds() -> float:
    """Processor time until now of the browser's processes, which are this one's descendants."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            name, fields = stat.read_text().rsplit(")", 1)
            process, fields = int(stat.parent.name), fields.split()
            parents[process], ticks[process] = int(fields[1]), sum(map(int, fields[11:13])) * ("chrom" in name)

    def is_ours(process):
        return process == os.getpid() or process in parents and is_ours(parents[process])

    return sum(count for process, count in ticks.items() if is_ours(process)) / os.sysconf("SC_CLK_TCK")


def server_rate(page) -> float:
    """Tokens/s of the engine, as the page shows it."""
    return float(re.search(r"([\d.]+) tokens/s", page.locator("#stats").inner_text())[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--rounds", type=int, default=5, help="samples of each (5)")
    args = parser.parse_args()
    rows = []
    size = {"width": 1280, "height": 800}
    with tempfile.TemporaryDirectory() as folder, app_in(Path(folder)) as app, chromium_page(viewport=size) as page:
        page.add_init_script(NO_BOARD)
        for seed in range(100, 100 + args.rounds):
            row = []
            for more in ("", "&board=off"):
                start, used = time.monotonic(), browser_seconds()
                browser = browser_rate(page, app.url, seed, more)
                row += [server_rate(page), browser, browser_seconds() - used, time.monotonic() - start]
            rows.append((row[:4], row[4:]))
            text = "engine {:.0f}, page {:.0f} tokens/s, browser {:.1f} of {:.1f} s"
            print(f"with board: {text}; without: {text}".format(*row), flush=True)
        page.goto(app.url)
        page.locator("#strip .token").first.wait_for()
        page.wait_for_timeout(3000)
        used, figures = browser_seconds(), {"frames_per_second": page.evaluate(FRAMES)}
        figures["processor_ms_per_frame"] = 1000 * (browser_seconds() - used) / (3 * figures["frames_per_second"])
        for name, shape in SHAPES.items():
            figures[f"draw_{name}_ms"] = page.evaluate(DRAW, list(shape))
            page.wait_for_timeout(300)
    median = statistics.median
    figures["engine_with_over_without"] = median(on[0] / off[0] for on, off in rows)
    figures["page_with_over_without"] = median(on[1] / off[1] for on, off in rows)
    figures["board_share_of_two_cores"] = median((on[2] - off[2]) / (2 * on[3]) for on, off in rows)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
