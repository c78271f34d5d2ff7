"""The picture is well-formed, and its dots stand where the points are."""

from xml.etree import ElementTree

import pytest

from reasongenrm.planning.chart import _Axis, chart
from reasongenrm.planning.fit import fit_law
from tests.planning.test_fit import SMALL, WIDE, copied, point, reasons

SVG = "{http://www.w3.org/2000/svg}"


def test_every_point_is_a_dot_and_every_model_a_line() -> None:
    store = fit_law([copied(10, 1.0), copied(100, 10.0), copied(1000, 100.0)])
    odd = WIDE.model_copy(update={"name": "<wide & deep>"})
    score = fit_law([point("score", model, reasons(n), n * 1.0) for model in (SMALL, odd) for n in (1, 2)])
    picture = ElementTree.fromstring(chart([store, score]))
    panels = picture.findall(f"{SVG}g")
    assert [len(panel.findall(f"{SVG}circle")) for panel in panels] == [3, 4]
    assert [len(panel.findall(f"{SVG}polyline")) for panel in panels] == [1, 2]
    assert "<wide & deep>" in [text.text for text in panels[1].findall(f"{SVG}text")]
    assert "seconds ~ work^1.00" in [text.text for text in panels[0].findall(f"{SVG}text")]
    xs = [float(dot.attrib["cx"]) for dot in panels[0].findall(f"{SVG}circle")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)  # decades are equally far apart


def test_an_axis_goes_between_powers_of_ten() -> None:
    axis = _Axis([2.0, 300.0], start=0, end=300)
    assert list(axis.powers) == [0, 1, 2, 3]
    assert [axis.place(value) for value in (1, 10, 1000)] == [0, 100, 300]
    assert list(_Axis([10.0], 0, 1).powers) == [1, 2]
