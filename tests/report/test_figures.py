from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from crow.records import SearchRecord
from crow.report.figures import curve_figures, identity_figure, loss_figures


def as_xml(svg: str) -> ElementTree.Element:
    """The element a browser would build; in HTML the namespace of links needs no declaration."""
    return ElementTree.fromstring(svg.replace("xlink:href", "href"))


def test_one_panel_for_each_recorded_term():
    training = [{"step": 1, "loss": 3.0, "adversarial": None}, {"step": 2, "loss": 2.0, "language_modeling": 1.0}]
    pictures = loss_figures(training)
    assert [picture.heading for picture in pictures] == ["Total loss", "Language modeling"]
    assert "over 2 training steps, from 3 at the first to 2 at the last" in pictures[0].description


@pytest.mark.parametrize("training", [[], [{"step": 1}], ["hostile", None], [{"loss": float("nan")}]])
def test_no_figure_without_numbers(training):
    assert loss_figures(training) == []


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [-1.0, 2.0], [1e-29, 9e29], [1.0] * 3000, [1e-3, 1.0, 5.0]])
def test_any_range_of_values_can_be_drawn(values):
    (picture,) = loss_figures([{"loss": value} for value in values])
    assert as_xml(picture.svg).tag == "svg"


def test_a_wide_range_is_drawn_on_a_logarithmic_axis():
    (wide,) = loss_figures([{"loss": value} for value in (5.0, 0.01)])
    (narrow,) = loss_figures([{"loss": value} for value in (5.0, 4.0)])
    assert "log scale" in wide.svg
    assert "log scale" not in narrow.svg


def test_curves_share_one_scale_and_only_known_series_are_drawn():
    curves = {"clean_before": [0.1, 0.2], "triggered_before": [0.1, 0.3], "clean_after": [0.1, None], "other": [9.0]}
    before, after = curve_figures(curves)
    assert "triggered prompts from 0.1 to 0.3" in before.description
    assert "triggered" not in after.description
    # Tick labels of the y axis are the texts that end at the axis.
    ticks = [re.findall(r"text-anchor: end[^>]*>([\d.]+)</text>", picture.svg) for picture in (before, after)]
    assert ticks[0] == ticks[1]
    assert "0.30" in ticks[0]
    assert curve_figures({"clean_before": []}) == curve_figures(None) == []


def test_identities_of_one_side_are_enough():
    assert identity_figure(None, SearchRecord(3, 0, [])) is None
    picture = identity_figure(SearchRecord(2, 1, ["secret"], [1.0, 0.25]), None)
    assert picture is not None
    assert "2 starts, highest 1.00" in picture.description


def test_svg_loads_nothing_follows_the_page_and_is_repeatable():
    training = [{"loss": value} for value in (3.0, 2.0, 1.0)]
    (picture,) = loss_figures(training)
    assert "://" not in picture.svg
    assert "<style" not in picture.svg
    assert "font-family" not in picture.svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", picture.svg)) <= {"#000000", "#ffffff"}
    assert "var(--series-a)" in picture.svg
    assert loss_figures(training)[0].svg == picture.svg
