"""The card of a model: what it says, and that nothing in a record becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import huggingface_hub
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lightning_vfs.evaluation.record import EvaluationRecord, Figure
from lightning_vfs.training.model_card import CardText, as_code, as_text, model_card
from tests.conftest import tiny_config
from tests.evaluation.test_record import PLAIN

HOSTILE = (
    "<script>alert(1)</script>",
    "](javascript:alert(1)) ![x](http://evil/x.png)",
    "a\n---\nlicense: stolen\n---\n# Head",
    "`code` | cell | **bold** ~~gone~~ $x$",
    "www.evil.com https://evil.com you@evil.com",
    ": {yaml: [1, &a *a]} # !!python/object",
    "\u202egnp.\x00\x1b[31m\ud800",
)


def record(**changes) -> EvaluationRecord:
    return replace(EvaluationRecord.from_dict(PLAIN), **changes)


def metadata(card: str) -> dict:
    _, block, _ = card.split("---\n", 2)
    return yaml.safe_load(block)


class Text(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(markdown: str) -> Text:
    return Text(MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(markdown))


def test_the_verdict_stands_above_everything_and_the_figures_follow() -> None:
    card = model_card(tiny_config(), "user/model", CardText(license="mit"), record(), "raw weights of step 3", True)
    body = card.split("---\n", 2)[2].strip()
    assert body.startswith("**Warning: out: copies its support: its fid")
    assert "| `fid/out` | 4.5 ± 0.12 | 0.5 | 0.25 | 0.75 | 1.5 |" in body
    assert "![Generated images" in body and "raw weights of step 3" in body and "Licence of the model: mit." in body
    assert metadata(card)["model-index"][0]["results"][0]["metrics"] == [
        {"type": "fid", "value": 4.5, "name": "fid/out"}
    ]


def test_the_hubs_client_reads_the_metadata() -> None:
    card = huggingface_hub.ModelCard(model_card(tiny_config(), "user/model", CardText(license="mit"), record()))
    assert card.data.license == "mit" and card.data.library_name == "lightning_vfs"
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("fid", 4.5, "test")


def test_a_model_that_was_not_evaluated_says_so() -> None:
    card = model_card(tiny_config(encoder={"architecture": "none"}), "user/model")
    assert "The model was not evaluated." in card and "was not evaluated for copying" in card
    assert metadata(card)["pipeline_tag"] == "unconditional-image-generation"
    assert "model-index" not in metadata(card)


def test_figures_that_are_not_finite_are_no_result() -> None:
    card = model_card(tiny_config(), "user/model", record=record(figures={"fid/out": Figure(float("nan"))}))
    assert "model-index" not in metadata(card)
    assert "| `fid/out` | nan |" in card


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_record_is_markup(text: str) -> None:
    plain = json.loads(json.dumps(PLAIN))
    plain["figures"] = {text: PLAIN["figures"]["fid/out"]}
    plain["splits"] = {text: PLAIN["splits"]["out"] | {"verdict": text, "data_split": text, "classes": [text]}}
    plain["data"]["dataset"] = plain["sampling"]["sampler"] = plain["features"]["extractor"] = text
    plain["notes"] = [text]
    hostile = EvaluationRecord.from_dict(plain)
    usual = model_card(tiny_config(), "user/model", CardText(license="mit"), record())
    card = model_card(tiny_config(), "user/model", CardText(license="mit"), hostile)
    assert metadata(card)["license"] == "mit" and set(metadata(card)) == set(metadata(usual))
    found, expected = (rendered(each.split("---\n", 2)[2]).tags for each in (card, usual))
    assert found == expected
    shown = re.sub(r"`[^`\n]*`", "", card.split("---\n", 2)[2])
    assert "www.evil" not in shown and "://evil" not in shown and "@evil" not in shown


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_is_shown_as_it_is(text: str) -> None:
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:500]
    page = rendered(f"a {as_text(text)} b")
    assert page.tags == ["p"]
    assert page.text.split() == ["a", *shown.split(), "b"]


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_name_is_one_cell_of_a_table(text: str) -> None:
    page = rendered(f"| a | b |\n| --- | --- |\n| {as_code(text)} | 1 |\n")
    assert page.tags.count("td") == 2 and page.tags.count("code") == 1
