"""The lines of the token strip."""

import json

from deepseek import SamplingParams
from deepseek.ui.components.token_strip import mark_line
from deepseek.ui.generation import generate


def test_strip_lines_are_appended_json_without_markup(demo):
    params = SamplingParams(seed=1, max_new_tokens=20)
    values = [g.strip for g in generate(*demo, "<script>alert(1)</script> ${1+1}", params)]
    assert all(later.startswith(earlier) for earlier, later in zip(values, values[1:]))
    records = [json.loads(line) for line in values[-1].splitlines()]
    assert records[0]["prompt"] == "<script>alert(1)</script> ${1+1}"
    assert len(records) == 21 and "<" not in values[-1]
    assert json.loads(mark_line(3)) == {"mark": 3}
