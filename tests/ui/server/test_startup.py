"""The app's command line."""

import subprocess
import sys

from running import ROOT


def test_an_unknown_option_is_refused_before_anything_is_loaded():
    result = subprocess.run(
        [sys.executable, ROOT / "app.py", "--port", "1"], capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 2 and "unrecognized arguments: --port" in result.stderr
