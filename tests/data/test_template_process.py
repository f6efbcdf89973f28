"""Chat templates are untrusted programs: what they reach, and how long and large they get."""

import time

import pytest

from deepseek.data import template_process
from deepseek.data.template_process import render_template

HOSTILE = {
    "class": ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
    "globals": ("{{ lipsum.__globals__['os'].system('id') }}", "access to attribute '__globals__' .* is unsafe"),
    "import": ("{% import 'os' as os %}{{ os }}", "no loader for this environment"),
    "change": ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe"),
    "syntax": ("{% if %}", "Expected an expression"),
    "refusal": ("{{ raise_exception('Roles must\\n alternate.') }}", "Roles must alternate"),
    "range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth"),
    "length": ("{{ 'x' * 10**7 }}", "it writes 10,000,000 characters, more than 4,194,304"),
    "memory": ("{{ 'x' * 10**10 }}", "it takes over 1 GiB of memory"),
}


@pytest.mark.parametrize("template, reason", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_ends_in_one_sentence(template, reason):
    with pytest.raises(
        ValueError, match=f"^messages cannot be rendered by the checkpoint's chat template: {reason}.*[.]$"
    ):
        render_template(template, [{"role": "user", "content": "a"}], {})


def test_an_endless_template_ends_and_the_next_one_renders(monkeypatch):
    monkeypatch.setattr(template_process, "TIMEOUT_S", 0.5)
    numbers, start = "range(100000)", time.monotonic()
    with pytest.raises(ValueError, match="chat template: it takes over 0.5 seconds or 1 GiB of memory.$"):
        render_template(f"{{% for i in {numbers} %}}{{% for j in {numbers} %}}{{% endfor %}}{{% endfor %}}", [], {})
    assert time.monotonic() - start < 60  # with a start of the process on a busy machine
    monkeypatch.undo()
    text = "a\ud800🦊\n"  # half a surrogate pair, which JSON can hold
    assert render_template("{{ messages[0].content }}-{{ name }}", [{"content": text}], {"name": "b"}) == text + "-b"
