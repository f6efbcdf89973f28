"""The report: one file that needs no network, shows text as text, and says what it was made from."""

import copy
import json
import re

import pytest
import torch
import transformers

from deepseek.checkpoints.loading import fingerprint, load
from deepseek.interpret.corpus import trace_corpus
from deepseek.ui.components import report_page, sections
from deepseek.ui.components.expert_sections import SECTIONS
from deepseek.ui.components.report_page import Subject, difference_rows, report_html
from deepseek.ui.components.report_parts import PARTS

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
TEXTS = {"foxes": "Once upon a time a fox ran over the hill. " * 4, "<b>&{}": f"{HOSTILE}\n" * 4}


@pytest.fixture(scope="module")
def subject(checkpoint):
    model, tokenizer = load(checkpoint)
    return Subject(model, tokenizer, TEXTS, trace_corpus(model, tokenizer, TEXTS))


def data_of(report):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', report, re.S)[1])


def test_the_report_is_one_file_with_every_figure_and_its_source(subject, checkpoint):
    done = []
    report = report_html([subject], lambda fraction, what: done.append((fraction, what)))
    assert [what for _, what in done if what] and [f for f, _ in done] == sorted(f for f, _ in done)
    assert report.count("plotly.js v") == 1 and "http-equiv" in report
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", report.replace(report_page.plotly_script(), ""))
    for part in (fingerprint(checkpoint), torch.__version__, transformers.__version__, report_page.own_version()):
        assert part in report
    assert subject.corpus.digest in report and "100 permutations from seed 0; 3 standard deviations" in report
    data = data_of(report)
    figures = sum(
        1 + sum(figure is not None for index in range(2) for figure in section.detail(subject.corpus, index).figures)
        for section in SECTIONS
    )
    figures += 5 + 3  # of importance and of steering; the checkpoint lies in no run
    assert len(data["figures"]) == figures == report.count('class="csv"') == report.count("data-csv=")
    assert len(data["tables"]) == 3 * len(SECTIONS) + 2
    for section in SECTIONS:
        assert f"<h2>{section.title}</h2>" in report
        for line in sections.summary(section, sections.measured(section, subject.corpus)):
            assert report_page.html.escape(line) in report


def test_text_stays_text(subject):
    report = report_html([subject])
    for part in ("<script>alert(1)", "<img src=x", "<b>&{}"):
        assert part not in report.replace(report_page.plotly_script(), "")
    assert "&lt;b&gt;&amp;{}" in report
    assert any(
        "<b>&{}" in table["headers"][3 - 1]
        for table in data_of(report)["tables"].values()
        if len(table["headers"]) == 5
    )


def test_a_second_checkpoint_stands_beside_with_the_differences(subject, tokenizer):
    other = copy.deepcopy(subject.model)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in other.state_dict().items():
        if "gate.weight" in name:
            tensor.copy_(torch.empty(tensor.shape).normal_(0, 0.1, generator=generator))
    beside = Subject(other, tokenizer, TEXTS, trace_corpus(other, tokenizer, TEXTS))
    report = report_html([subject, beside])
    assert report.count("<h3>A: ") == report.count("<h3>B: ") == len(SECTIONS) + len(PARTS)
    assert report.count("<h3>B less A</h3>") == len(SECTIONS) + 2
    for section in SECTIONS:
        a, b = (sections.measured(section, each.corpus) for each in (subject, beside))
        assert all(row[-1] == "no difference beyond chance" for row in difference_rows(section, a, a))
        rows = difference_rows(section, a, b)
        assert rows
        for name, layer, _, _, gap, words in rows:
            index = a.layers.index(int(layer))
            sides = [numbers.series[name][index] for numbers in (a, b)]
            expected = sides[1].observed - sides[1].chance - sides[0].observed + sides[0].chance
            assert gap == format(float(expected), "+" + section.form)
            limit = 3 * (sides[0].spread ** 2 + sides[1].spread ** 2) ** 0.5
            assert words == (
                "no difference beyond chance" if abs(expected) <= limit else "more" if expected > 0 else "less"
            )


def test_of_many_layers_a_few_are_drawn_in_detail():
    assert report_page.detailed_layers(5) == [0, 1, 2, 3, 4] and report_page.detailed_layers(48) == [
        0,
        9,
        19,
        28,
        38,
        47,
    ]


def test_a_dense_model_is_refused(llama, tokenizer):
    with pytest.raises(ValueError, match="cannot be reported on. This model is dense"):
        report_html([Subject(llama, tokenizer, TEXTS, trace_corpus(llama, tokenizer, TEXTS))])
