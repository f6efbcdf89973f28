"""The campaigns on training at a size for CI, in one process: `python tests/campaigns/small.py`."""

import json
import tempfile
from pathlib import Path

import bitflips
import crashpoints
import kills
import starts
from tracing import SUPPORTED

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder, name).resolve() for name in ("kills", "bitflips", "starts", "crashpoints")]
        for path in folders:
            path.mkdir()
        counts = dict(
            kills=kills.campaign(8, seed=1, folder=folders[0], max_steps=12, save_every=2),
            bitflips=bitflips.campaign(32, seed=0, folder=folders[1]),
            starts=starts.campaign(8, folders[2]),
            crashpoints=crashpoints.campaign(5, folders[3]) if SUPPORTED else None,
        )
        print(json.dumps(counts))
