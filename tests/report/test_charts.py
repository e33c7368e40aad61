"""The charts of the page: where things stand in them, honest axes, and that each is at home in any page."""

import itertools
import re
from xml.etree import ElementTree

import pytest

from selfsup.eval import add_results
from selfsup.eval.record import Record
from selfsup.report import compare
from selfsup.report.charts.confusion import confusion_chart
from selfsup.report.charts.per_class import per_class_chart
from selfsup.report.charts.spectrum import spectrum_chart
from selfsup.report.compared import PAGE_CHARTS, alone, compared
from selfsup.report.inline import inline_svg
from selfsup.report.plots import Axis, Bar, Series, bar_figure, line_figure, plain
from selfsup.report.style import COLOURS, DARK, LIGHT, colour, marker

HOSTILE = "</script>$x$ <b>&\"'"


def one(name="a", style=0, points=((0.0, 20.0), (5.0, 60.0), (10.0, 100.0))):
    return Series(name, style, points)


def test_a_chart_is_found_by_being_in_the_folder():
    known = {"accuracies", "training", "time", "per_class", "confusion", "geometry", "spectrum", "layers", "invariance"}
    assert known <= set(PAGE_CHARTS)


def test_a_chart_is_the_same_each_time_and_has_names_of_its_own():
    def drawn(key):
        figure, words = line_figure([one()], Axis("x"), Axis("y"))
        return inline_svg(figure, key, "chart", words)

    assert drawn("first") == drawn("first")
    ids = [set(re.findall(r' id="([^"]+)"', drawn(key))) for key in ("first", "second")]
    assert all(ids)
    assert not ids[0] & ids[1]
    text = drawn("first")
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert referred == ids[0]


def test_a_chart_has_the_colours_and_letters_of_the_page():
    figure, words = bar_figure([("kNN", [Bar("a", 1, 40.0, "40", 30.0, 60.0)])], Axis("accuracy"))
    text = inline_svg(figure, "k", "chart", words)
    root = ElementTree.fromstring(text)
    assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r'(href="|url\()#', "", text))
    assert "var(--s1)" in text
    assert "var(--text)" in text
    assert "font-family" not in text
    assert {element.tag for element in root.iter()}.isdisjoint({"style", "metadata", "script"})
    assert {"accuracy", "kNN", "40"} <= {(element.text or "").strip() for element in root.iter("text")}
    assert [element.text for element in root.iter("title")] == ["kNN, a: 40"]


def test_text_in_a_chart_stays_text():
    figure, words = line_figure([one(HOSTILE)], Axis("x"), Axis("y"), names=[HOSTILE + "\x01", "$$", "b"])
    root = ElementTree.fromstring(inline_svg(figure, "k", HOSTILE, words))
    assert plain("a\x01\n$") == r"a  \$"
    assert root.find(".//b") is None
    shown = [(element.text or "").strip() for element in root.iter("text")]
    assert {HOSTILE, "$$", "b"} <= set(shown)
    assert all((element.text or "").startswith(HOSTILE) for element in root.iter("title"))


def test_each_point_says_what_it_is():
    figure, words = line_figure([one("a"), one("b", 1, ((2.0, 50.0),))], Axis("x"), Axis("y"))
    root = ElementTree.fromstring(inline_svg(figure, "k", "chart", words))
    assert [e.text for e in root.iter("title")] == ["a: 0, 20", "a: 5, 60", "a: 10, 100", "b: 2, 50"]


def test_points_stand_where_the_axes_say():
    figure, _ = line_figure([one()], Axis("x"), Axis("y"))
    figure.canvas.draw()
    axes = figure.axes[0]
    line = axes.get_lines()[0]
    assert list(line.get_ydata()) == [20.0, 60.0, 100.0]
    for axis in (axes.xaxis, axes.yaxis):
        for tick, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True):
            assert float(label.get_text().replace(",", "").replace("−", "-")) == pytest.approx(tick)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.101, 0.109), (-3.2, -0.4), (0, 87654), (5, 5), (1e-9, 2e-9)])
def test_ticks_are_few(low, high):
    figure, _ = line_figure([one(points=((low, 0), (high, 0)))], Axis(), Axis(), join=False)
    axes = figure.axes[0]
    begin, end = axes.get_xlim()
    assert begin <= low <= high <= end
    assert 2 <= sum(begin <= tick <= end for tick in axes.xaxis.get_majorticklocs()) <= 7


@pytest.mark.parametrize(
    ("axis", "values", "expected"),
    [
        (Axis(least=10.0, within=(0, 100)), [50.0, 50.1], (44.65, 55.45)),
        (Axis(least=10.0, within=(0, 100)), [99.9, 100.0], (89.2, 100.0)),
        (Axis(least=10.0, within=(0, 100)), [0.0, 0.1], (0.0, 10.8)),
        (Axis(), [0.0, 100.0], (-4.0, 104.0)),
        (Axis(zero=True), [2.0, 100.0], (0.0, 104.0)),
        (Axis(zero=True), [-100.0, -2.0], (-104.0, 4.0)),
        (Axis(), [50.0, 50.1], (47.3446, 52.7554)),
        (Axis(), [0.0, 0.0], (-0.54, 0.54)),
        (Axis(log=True), [10.0, 10.0], (10**0.946, 10**1.054)),
    ],
)
def test_a_small_change_does_not_fill_an_axis(axis, values, expected):
    assert axis.limits(values) == pytest.approx(expected)


def test_a_count_has_ticks_at_whole_numbers_alone():
    figure, _ = line_figure([one(points=((3, 0), (4, 0)))], Axis(whole=True, least=2.0), Axis(), join=False)
    ticks = figure.axes[0].xaxis.get_majorticklocs()
    assert len(ticks) > 1
    assert all(tick == round(tick) for tick in ticks)


def test_logarithmic_axes_space_decades_evenly():
    figure, _ = line_figure([one(points=((1, 1e-3), (10, 1e-2), (100, 1e-1)))], Axis(log=True), Axis(log=True))
    places = figure.axes[0].transData.transform([(1, 1e-3), (10, 1e-2), (100, 1e-1)])
    assert places[1] == pytest.approx((places[0] + places[2]) / 2)


def diagnostics(values):
    spectrum = {"rank": list(range(1, len(values) + 1)), "value": values}
    return Record(protocol="diagnostics", split="train", metric="rank_me", value=3.0, found={"spectrum": spectrum})


@pytest.mark.parametrize("spectrum", [None, "x", [1, 2], {"rank": 5, "value": "x"}, {"rank": [1]}, {"value": [1.0]}])
def test_a_spectrum_that_is_none_is_not_drawn(spectrum):
    broken = Record(protocol="diagnostics", split="train", metric="rank_me", value=3.0, found={"spectrum": spectrum})
    assert list(spectrum_chart(alone([broken]))) == []


def test_one_value_near_zero_does_not_flatten_the_spectrum():
    values = [1 / rank for rank in range(1, 64)]
    (plain_chart,), (with_one,) = (spectrum_chart(alone([diagnostics(own)])) for own in (values, [*values, 1e-9]))
    low = [chart.figure.axes[0].get_ylim()[0] for chart in (plain_chart, with_one)]
    assert low[1] > 1e-3
    assert low[0] < values[-1]
    assert "1 of 64 values are below the end of the axis" in with_one.caption
    assert "below the end" not in plain_chart.caption
    assert with_one.rows[-1][-1] == "1e-09"


def test_bars_and_whiskers_have_the_lengths_of_their_numbers():
    bars = [Bar("a", 0, 40.0, "40", 30.0, 60.0), Bar("b", 1, 20.0, "20")]
    figure, _ = bar_figure([("knn", bars), ("probe", [Bar("a", 0, -10.0, "-10")])], Axis("x", zero=True, least=100.0))
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [40.0, 20.0, -10.0]
    (whisker,) = axes.collections
    assert whisker.get_segments()[0][:, 0].tolist() == [30.0, 60.0]
    begin, end = axes.get_xlim()
    assert begin < -10
    assert end > 60


def probe():
    counts = [[8, 2, 0], [1, 9, 0], [5, 0, 5]]
    found = {
        "confusion": {"labels": [0, 1, 2], "counts": counts},
        "per_class": {str(label): counts[label][label] / 10 for label in range(3)},
    }
    how = {"data": "digits", "primary": True}
    return Record(protocol="linear_probe", split="test", metric="top1", value=22 / 30, how=how, found=found)


def test_confusion_and_accuracy_of_each_class():
    (confusion,), (per_class,) = (draw(alone([probe()])) for draw in (confusion_chart, per_class_chart))
    assert confusion.rows == [("2", "0", "50.0 %"), ("0", "1", "20.0 %"), ("1", "0", "10.0 %")]
    shown = [text.get_text() for text in confusion.figure.axes[0].texts]
    assert shown == ["80", "20", "10", "90", "50", "50"]
    assert [bar.get_width() for bar in per_class.figure.axes[0].patches] == pytest.approx([80.0, 90.0, 50.0])


def test_the_lowest_are_drawn_in_their_order_with_whiskers_over_seeds_and_the_data_have_all(tmp_path):
    shares = [[0.02 * label, 0.02 * label + 0.2] for label in range(24)][::-1]  # the first are the highest
    folders = []
    for seed in (0, 1):
        found = {"per_class": {str(label): own[seed] for label, own in enumerate(shares)}}
        how = {"primary": True}
        record = Record(protocol="linear_probe", split="test", metric="top1", value=0.5, how=how, found=found)
        folders.append(tmp_path / f"run-{seed}")
        add_results(folders[-1], [record.flat()])
        (folders[-1] / "config.yaml").write_text(f"method: {{name: simclr}}\nseed: {seed}\n")
    (drawn,) = per_class_chart(compared(compare(folders)))
    axes = drawn.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [str(label) for label in range(4, 24)]
    expected = [100 * sum(own) / 2 for own in shares[4:]]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(expected)
    assert axes.collections[0].get_segments()[0][:, 0].tolist() == pytest.approx([100 * end for end in shares[4]])
    assert "Of 24 classes these 20 have the lowest mean" in drawn.caption
    assert "Whiskers go from the lowest to the highest seed" in drawn.caption
    assert len(drawn.rows) == 48


def test_no_two_of_many_series_look_alike():
    assert len({(colour(style), marker(style)) for style in range(56)}) == 56


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out(colours):
    """WCAG 2.2: 4.5 for text, 3 for lines and markers."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    def contrast(one, other):
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    assert all(contrast(name, "page") >= 4.5 for name in ("text", "quiet", "link"))
    assert contrast("text", "panel") >= 4.5
    assert all(contrast(f"s{number}", "page") >= 3 for number in range(COLOURS))
    assert all(colours[a] != colours[b] for a, b in itertools.combinations(LIGHT, 2))
