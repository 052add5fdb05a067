"""Pictures: what is drawn (artists, not pixels), what is refused, and that the same records give
the same bytes.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import UsageError
from harness.core.records import write_sealed
from harness.core.run_folder import write_rows
from harness.report.plots import (
    KINDS,
    STYLES,
    NothingToDraw,
    cost,
    curves,
    drawn,
    frontier,
    overoptimization,
    render,
)
from harness.report.plots.pictures import draw_files, targets_of
from harness.report.plots.style import COLOURS, GREY, SETTINGS, look
from harness.report.plots.wins import luminance
from harness.report.selection.filters import Filter
from harness.report.selection.sweeps import scores_of, sweeps
from harness.statistics.intervals import two_way_interval, win_rate_interval
from harness.statistics.overoptimization import fit_seeds
from harness.statistics.rating import rate

from ..helpers.tools import ENV, ROOT, command, failure, put
from ..helpers.toy_runs import chosen, logged, run, study

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study with two sweeps, best-of-n over n, SFT and a control, three seeds each."""
    folder = tmp_path_factory.mktemp("study")
    study(folder)
    return folder


@pytest.fixture(scope="module")
def selection(results):
    return chosen(results)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """What every kind can draw, and quickly."""
    folder = tmp_path_factory.mktemp("small")
    run(folder, "best_of_n", 0, 1.8, {"n": 16})
    for beta in (0.1, 0.2, 0.4):
        for seed in (0, 1):
            told = logged(9, seed, "reward")
            run(
                folder,
                "ppo",
                seed,
                0.4 / beta,
                {"beta": beta},
                curve=(0.1, 0.2, 0.4 / beta),
                metrics=told,
            )
    return chosen(folder)


@pytest.fixture(scope="module")
def figures(selection):
    return {kind: drawn(kind, selection) for kind in KINDS}


def bars(axis):
    """{label: [(x, y, left, right, down, up)]} of the error bars of an axis."""
    found = {}
    for container in axis.containers:
        line, _, segments = container
        points = list(zip(*line.get_data(), strict=True))
        across, along = segments if len(segments) == 2 else ([None] * len(points), segments[0])
        across, along = (
            s.get_segments() if s is not None and not isinstance(s, list) else s
            for s in (across, along)
        )
        own = found.setdefault(container.get_label(), [])
        for point, x, y in zip(points, across, along, strict=True):
            horizontal = (point[0], point[0]) if x is None else (x[0][0], x[1][0])
            own.append((*point, *horizontal, y[0][1], y[1][1]))
    return found


def legend(figure):
    return [t.get_text() for one in figure.legends for t in one.get_texts()]


def lines(axis):
    return {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}


# -- frontier --------------------------------------------------------------------------------------


def test_frontier_points_and_bars_are_the_statistics(selection, figures):
    (axis,) = figures["frontier"].axes
    found = bars(axis)
    assert sum(len(own) for own in found.values()) == len(selection.rows) == 16
    for one in sweeps(selection.rows):
        expected = []
        for row in one.rows:
            scores = scores_of(row)
            kl, win = two_way_interval(scores["kl"]), win_rate_interval(scores["win_rate"])
            expected.append((kl.mean, win.mean, max(0.0, kl.low), kl.high, win.low, win.high))
        assert np.allclose(found[one.name], sorted(expected))


def test_frontier_draws_a_sweep_as_one_line_with_values(selection, figures):
    (axis,) = figures["frontier"].axes
    for container in axis.containers:
        x = container.lines[0].get_xdata()
        assert list(x) == sorted(x)
        assert (container.lines[0].get_linestyle() != "None") == (len(x) > 1)
    texts = [t.get_text() for t in axis.texts]
    assert sorted(texts) == sorted(
        ["2", "4", "16", "64", *2 * ["0.02", "0.05", "0.1", "0.2", "0.4"]]
    )
    assert "ppo, over beta, 3 seeds" in legend(figures["frontier"])


def test_place_labels_keeps_labels_inside_and_apart(figures):
    figure = figures["frontier"]
    (axis,), renderer = figure.axes, figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in axis.texts]
    whole = axis.get_window_extent(renderer)
    assert all(
        whole.x0 <= b.x0 and b.x1 <= whole.x1 + 1 and whole.y0 <= b.y0 and b.y1 <= whole.y1 + 1
        for b in boxes
    )
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not [1 for a, b in pairs if a.overlaps(b) and a.width * a.height > 0]


def test_frontier_names_a_cut_bar(tmp_path):
    for seed, kl in enumerate((1.0, 1.1, 9.0)):  # ppo's seeds are far apart; start's are not
        run(tmp_path, "ppo", seed, kl, {"beta": 0.1})
        run(tmp_path, "start", seed, 0.0, {"unused": True})
    selection = chosen(tmp_path)
    (wide,) = [spot for spot in map(frontier.spot_of, selection.rows) if spot.row.name == "ppo"]
    figure = drawn("frontier", selection)
    assert wide.kl.high > figure.axes[0].get_xlim()[1]
    told = figure.get_supxlabel()
    assert f"ppo (to {wide.kl.high:.1f} nats)." in told and "start" not in told
    for seed in range(3):
        run(tmp_path / "even", "ppo", seed, 1.0, {"beta": 0.1})
    assert not drawn("frontier", chosen(tmp_path / "even")).get_supxlabel()


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 1)), min_size=1, max_size=15))
def test_frontier_of_has_no_dominated_point(points):
    kept = frontier.frontier_of(points)
    assert set(kept) <= set(points)
    for kl, win in points:
        best = max(w for k, w in kept if k <= kl)  # the step function at this KL
        assert best == max(w for k, w in points if k <= kl)
        assert ((kl, win) in kept) == (
            not any(k <= kl and w >= win and (k, w) != (kl, win) for k, w in points)
        )


def test_frontier_is_drawn(selection, figures):
    (axis,) = figures["frontier"].axes
    spots = [frontier.spot_of(row) for row in selection.rows]
    kept = frontier.frontier_of([(s.kl.mean, s.win.mean) for s in spots])
    (step,) = [line for line in axis.lines if line.get_drawstyle() == "steps-post"]
    drawn_points = list(zip(*step.get_data(), strict=True))
    assert np.allclose(drawn_points, [*kept, (max(s.kl.mean for s in spots), kept[-1][1])])


def test_frontier_marks_the_bounds_of_best_of_n(selection, figures):
    (axis,) = figures["frontier"].axes
    marks = sorted(
        line.get_xdata()[0]
        for line in axis.lines
        if line.get_marker() == "|" and line.get_color() == GREY
    )
    assert np.allclose([x for x in marks], [math.log(n) - (n - 1) / n for n in (2, 4, 16, 64)])
    assert any("KL is estimated" in text for text in legend(figures["frontier"]))
    ideal = next(
        line for line in axis.lines if line.get_linestyle() == "--" and len(line.get_xdata()) > 50
    )
    x, y = ideal.get_data()
    n = y / (1 - y)  # win-rate n / (n + 1)
    assert np.allclose(x, np.log(n) - (n - 1) / n) and x[0] == 0 and y[0] == 0.5


def test_frontier_marks_no_bounds_without_best_of_n(tmp_path):
    run(tmp_path, "ppo", 0, 2.0)
    assert not any("estimated" in text for text in legend(drawn("frontier", chosen(tmp_path))))


# -- cost ------------------------------------------------------------------------------------------


def test_cost_is_the_mean_over_seeds_of_every_row(selection, figures):
    axes = figures["cost"].axes
    assert [axis.get_xlabel() for axis in axes] == list(cost.PANELS)
    assert all(axis.get_xscale() == "log" for axis in axes)
    for axis in axes:
        assert len(axis.containers) == len(selection.rows)
    flops, seconds, memory, _ = (bars(axis) for axis in axes)
    assert flops["ppo (beta=0.05)"][0][0] == pytest.approx(2.2)  # TFLOP
    assert seconds["ppo (beta=0.05)"][0][0] == pytest.approx(60 + 1 + 9)
    assert memory["ppo (beta=0.05)"][0][0] == pytest.approx(512)
    for row in selection.rows:
        win = win_rate_interval(scores_of(row)["win_rate"])
        assert flops[row.name][0][1:] == pytest.approx(
            (win.mean, flops[row.name][0][0], flops[row.name][0][0], win.low, win.high)
        )


def test_cost_of_zero_is_left_of_the_axis(figures):
    axis = figures["cost"].axes[0]
    found = bars(axis)
    least = min(own[0][0] for name, own in found.items() if "ppo" in name or "dpo" in name)
    assert found["start"][0][0] == found["best_of_n (n=4)"][0][0] < least
    ticks = dict(
        zip(axis.get_xticks(), (t.get_text() for t in axis.get_xticklabels()), strict=True)
    )
    assert ticks[found["start"][0][0]] == "none"
    assert all(x >= least / 1.2 for x, text in ticks.items() if text != "none")
    assert "are not included" in figures["cost"].get_supxlabel()


@pytest.mark.parametrize("ratio", [1.0, 1.02, 1.5, 2.9, 3.1, 30.0, 1e4])
def test_cost_ticks_are_apart(ratio, tmp_path):
    for i, flops in enumerate((1e12, ratio * 1e12)):
        run(tmp_path, "ppo", 0, 1.0, {"beta": 0.1 * (i + 1)}, cost={"flops": flops})
    figure = drawn("cost", chosen(tmp_path))
    axis, renderer = figure.axes[0], figure.canvas.get_renderer()
    figure.draw_without_rendering()
    boxes = [t.get_window_extent(renderer) for t in axis.get_xticklabels()]
    assert boxes and not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


# -- curves ----------------------------------------------------------------------------------------


def test_curve_of_has_students_interval_over_seeds():
    found = curves.curve_of(
        [{1.0: 1.0, 2.0: 5.0}, {1.0: 2.0, 2.0: 5.0, 3.0: 9.0}, {1.0: 3.0, 2.0: 5.0}]
    )
    assert (found.steps, found.mean, found.seeds) == ([1.0, 2.0], [2.0, 5.0], 3)
    assert found.half == pytest.approx([4.302652729911275 / math.sqrt(3), 0.0])
    alone = curves.curve_of([{1.0: 1.0, 2.0: 5.0}])
    assert alone.mean == [1.0, 5.0] and all(math.isnan(h) for h in alone.half)


def test_curves_show_the_logged_metrics(selection, figures):
    axes = {axis.get_ylabel(): axis for axis in figures["curves"].axes}
    assert list(axes) == [*curves.ROLLOUTS.values(), curves.LOSS, *curves.KEPT.values()]
    reward = lines(axes["reward of rollouts"])
    assert set(reward) == {row.name for row in selection.rows if row.method == "ppo"}
    told = [
        [m["reward"] for m in logged(40, seed, "reward", "kl", "length", "loss")]
        for seed in range(3)
    ]
    assert np.allclose(reward["ppo (beta=0.1)"].get_ydata(), np.mean(told, 0))
    assert len(axes["reward of rollouts"].collections) == 5  # a band each
    assert set(lines(axes[curves.LOSS])) == {
        row.name for row in selection.rows if row.method == "dpo"
    }
    kept = lines(axes["gold reward"])["ppo (beta=0.1)"]
    row = next(r for r in selection.rows if r.name == "ppo (beta=0.1)")
    points = [[p["gold"] for p in r["evaluation"]["curve"]] for r in row.good]
    assert np.allclose(kept.get_ydata(), np.mean(points, 0)) and list(kept.get_xdata()) == [
        10.0 * i for i in range(1, 7)
    ]


def test_curves_of_one_seed_have_no_band(tmp_path):
    run(tmp_path, "ppo", 0, 2.0, metrics=logged(9, 0, "reward"))
    figure = drawn("curves", chosen(tmp_path))
    (axis,) = figure.axes
    assert not axis.collections and "there is no band" in figure.get_supxlabel()


# -- over-optimisation -----------------------------------------------------------------------------


def test_overoptimization_fits_gold_by_seed(selection, figures):
    series = {s.name: s for s in overoptimization.series_of(selection)}
    assert set(series) == {
        "best_of_n, over n",
        "ppo, over beta",
        "dpo (shuffle_labels=False), over beta",
    } | {f"ppo (beta={beta}), along training" for beta in (0.02, 0.05, 0.1, 0.2, 0.4)}
    along = series["ppo (beta=0.02), along training"]
    assert (along.form, along.fit.seeds, along.fit.points) == ("rl", 3, 18)
    assert (along.fit.alpha, along.fit.beta) == pytest.approx((1.5, 0.8))  # toy_runs.hump
    assert (series["best_of_n, over n"].form, series["best_of_n, over n"].fit.points) == ("bon", 12)
    assert (
        series["best_of_n, over n"].fit.alpha,
        series["best_of_n, over n"].fit.beta,
    ) == pytest.approx((1.9, 0.45))
    path, *_ = along.paths
    assert (path.d[0], path.gold[0], path.proxy[0]) == (0.0, 0.0, 0.0)
    row = next(r for r in selection.rows if r.name == "ppo (beta=0.02)")
    last = row.good[0]["evaluation"]["curve"][-1]
    assert (path.d[-1], path.gold[-1]) == pytest.approx((last["kl"] ** 0.5, last["gold"] - 1.0))
    expected = fit_seeds([(p.d, p.gold) for p in along.paths])
    (fitted,) = (
        lines(axis)[f"{along.name}: fit"]
        for axis in figures["overoptimization"].axes
        if f"{along.name}: fit" in lines(axis)
    )
    assert np.allclose(fitted.get_ydata(), expected.at(fitted.get_xdata()))
    assert fitted.get_xdata().max() == pytest.approx(expected.largest)  # nothing is extrapolated


def fits_of(figure):
    """The rows of the table of fits by series."""
    (table,) = figure.axes[-1].tables
    texts = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    columns = max(column for _, column in texts) + 1
    rows = range(1, max(row for row, _ in texts) + 1)
    return {texts[i, 0]: [texts[i, j] for j in range(1, columns)] for i in rows}


def test_overoptimization_has_a_table_of_fits(selection, figures):
    fits = fits_of(figures["overoptimization"])
    series = overoptimization.series_of(selection)
    assert list(fits) == [one.name for one in series] and len(fits) == 8
    assert fits["ppo, over beta"][1:] == [
        "1.500 \u00b1 0.000",
        "0.800 \u00b1 0.000",
        "0.00 / 0.00",
        "1.92 at d = 2.40",  # 0.8 exp(1.5 / 0.8 - 1)
    ]
    assert fits["best_of_n, over n"][0] != fits["ppo, over beta"][0]
    assert fits["best_of_n, over n"][-1] == "beyond the points"


def test_overoptimization_has_a_panel_per_series(selection, figures):
    *axes, _ = figures["overoptimization"].axes
    series = overoptimization.series_of(selection)
    assert [axis.get_title().replace("\n", " ") for axis in axes] == [s.name for s in series]
    assert len({(axis.get_xlim(), axis.get_ylim()) for axis in axes}) == 1
    for axis, one in zip(axes, series, strict=True):
        labels = [line.get_label() for line in axis.lines]
        assert labels.count(one.name) == labels.count(f"{one.name}: proxy") == len(one.paths)


def test_overoptimization_names_a_cut_proxy(tmp_path):
    for kl in (0.5, 1.0, 2.0, 4.0):
        run(tmp_path, "ppo", 0, kl, {"beta": 1 / kl}, lambda d: d * (1.5 - 0.8 * math.log(d)))
    file = max(tmp_path.rglob("result.json"))
    made = json.loads(file.read_text())
    made["evaluation"]["proxy"]["mean"] = 52.0  # the baseline's is 2
    write_sealed(file, made)
    answers = file.with_name("samples.jsonl")
    rows = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
    write_rows(answers, [row | {"proxy": None} for row in rows])  # else their mean is another
    axis, _ = drawn("overoptimization", chosen(tmp_path)).axes
    assert [text.get_text() for text in axis.texts] == ["proxy up to 50.0"]
    assert axis.get_ylim()[1] < 10


@pytest.mark.parametrize(("alpha", "peak"), [(-0.5, "none"), (0.2, "before the points")])
def test_overoptimization_gives_no_peak_without_points(tmp_path, alpha, peak):
    """Gold that falls from the first point on had a peak of 0.00 at d = 0.00."""
    for kl in (0.5, 1.0, 2.0, 4.0):
        run(tmp_path, "ppo", 0, kl, {"beta": 1 / kl}, lambda d: d * (alpha - 0.8 * math.log(d)))
    ((*_, shown),) = fits_of(drawn("overoptimization", chosen(tmp_path))).values()
    assert shown == peak


def test_overoptimization_draws_few_points_without_a_fit(tmp_path):
    for beta, kl in ((0.1, 2.0), (0.2, 1.0)):
        run(tmp_path, "ppo", 0, kl, {"beta": beta})
    figure = drawn("overoptimization", chosen(tmp_path))
    assert fits_of(figure)["ppo, over beta"][0] == "no fit: fewer than 3 points"
    assert not [name for name in lines(figure.axes[0]) if name.endswith("fit")]


# -- wins ------------------------------------------------------------------------------------------


def test_wins_matrix_is_of_gold_on_the_same_prompts(selection, figures):
    matrix, ratings = figures["wins"].axes
    found = rate({row.name: scores_of(row)["gold"] for row in selection.rows})
    order = sorted(found.ratings, key=lambda name: -found.ratings[name].elo)
    assert [t.get_text().replace("\n", " ") for t in matrix.get_yticklabels()] == order
    names = list(found.ratings)
    for text in matrix.texts:
        j, i = text.get_position()
        assert (
            text.get_text()
            == f"{100 * found.win_rates[names.index(order[i]), names.index(order[j])]:.0f}"
        )
    assert len(matrix.texts) == 16 * 15
    (container,) = ratings.containers
    segments = container.lines[2][0].get_segments()
    for segment, name in zip(segments, order, strict=True):
        assert (segment[0][0], segment[1][0]) == pytest.approx(
            (found.ratings[name].low, found.ratings[name].high)
        )


def test_wins_cells_have_contrast():
    from matplotlib import colormaps

    for rate_ in np.linspace(0, 1, 101):
        colour = colormaps["PuOr_r"](rate_)
        text = 1.0 if luminance(colour) < 0.4 else 0.0
        assert abs(luminance(colour) - text) > 0.35


# -- all kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_plots_are_complete_with_text_of_seven_points(kind, figures):
    from matplotlib.text import Text

    figure = figures[kind]
    figure.draw_without_rendering()
    renderer, whole = figure.canvas.get_renderer(), figure.bbox
    parts = [axis.get_tightbbox(renderer) for axis in figure.axes]
    parts += [one.get_window_extent(renderer) for one in figure.legends]
    parts += [figure._supxlabel.get_window_extent(renderer)] if figure.get_supxlabel() else []
    for box in parts:
        assert (
            box.x0 >= -1
            and box.y0 >= -1
            and box.x1 <= whole.width + 1
            and box.y1 <= whole.height + 1
        ), box
    assert figure.get_size_inches()[0] == 7.0 and len(parts) > 1
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7


@pytest.mark.parametrize("kind", KINDS)
def test_legends_overlap_nothing(kind, figures):
    figure = figures[kind]
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [one.get_window_extent(renderer) for one in figure.legends]
    others = [axis.get_tightbbox(renderer) for axis in figure.axes]
    note = figure._supxlabel
    others += [note.get_window_extent(renderer)] if note is not None and note.get_text() else []
    assert not [1 for box in boxes for other in others if box.overlaps(other)]
    assert not [
        1
        for i, a in enumerate(others)
        for b in others[:i]
        if a.shrunk(0.98, 0.98).overlaps(b.shrunk(0.98, 0.98))
    ]


def test_matplotlib_is_loaded_only_for_drawing():
    code = (
        "import sys, harness.report.plots.pictures, harness.report.tables.match; print([m for m in"
        " sys.modules if m in NAMES])"
    )
    for names, expected in ((("matplotlib", "scipy"), "[]"), (("numpy",), "['numpy']")):
        told = subprocess.run(
            [sys.executable, "-c", f"NAMES = {names}; {code}"],
            capture_output=True,
            text=True,
            env={**os.environ, **ENV, "PYTHONPATH": path()},
        )
        assert told.stdout.strip() == expected, told.stderr


def test_look_differs_for_every_row():
    assert len({look(i) for i in range(140)}) == 140
    assert len({(look(i).marker, look(i).full) for i in range(20)}) == 20  # in grey too
    assert (
        len(set(COLOURS)) == 7
        and min(v for k, v in SETTINGS.items() if k.endswith("size") and "." in k and v > 5) >= 7
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_render_gives_the_same_bytes_for_the_same_records(kind, style, small):
    first = render(kind, small, style)
    assert first == render(kind, small, style)
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[style])
    assert b"CreationDate" not in first and b"<dc:date>" not in first
    assert matplotlib.__version__.encode() not in first


def test_render_gives_the_same_bytes_in_another_process(results, tmp_path):
    for name, more in (
        ("a", {}),
        ("b", {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}),
    ):
        (tmp_path / "matplotlibrc").write_text(
            "axes.facecolor: red\n" if name == "b" else ""
        )  # a user's own settings
        args = [
            sys.executable,
            "-m",
            "harness",
            "plot",
            "--results",
            str(results),
            "-o",
            str(tmp_path / f"{name}.svg"),
        ]
        done = subprocess.run(
            args, cwd=tmp_path, env={**os.environ, **ENV, **more, "PYTHONPATH": path()}
        )
        assert done.returncode == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def path():
    return os.pathsep.join(str(ROOT / part) for part in ("", "plugins", "suites"))


def test_render_gives_other_bytes_for_another_record(results, tmp_path):
    run(tmp_path, "ppo", 0, 2.0)
    before = render("frontier", chosen(tmp_path), "svg")
    run(tmp_path, "ppo", 1, 2.1)
    assert render("frontier", chosen(tmp_path), "svg") != before


def test_plots_leave_failed_runs_out(tmp_path):
    run(tmp_path, "ppo", 0, 2.0)
    put(tmp_path, failure("dpo"))
    (axis,) = drawn("frontier", chosen(tmp_path)).axes
    assert set(bars(axis)) == {"ppo"}


def test_legends_count_failed_seeds(tmp_path):
    told = [{"step": float(i), "reward": float(i)} for i in range(4)]
    for beta, kl in ((0.1, 2.0), (0.2, 1.0)):
        for seed in (0, 1):
            run(tmp_path, "ppo", seed, kl, {"beta": beta}, metrics=told)
    run(tmp_path, "dpo", 0, 1.5, metrics=told)
    assert "ppo, over beta, 2 seeds" in legend(drawn("frontier", chosen(tmp_path)))
    put(tmp_path, failure("ppo", 2, recipe="ppo beta=0.1 on toy", options={"beta": 0.1}))
    put(tmp_path, failure("dpo", 1, recipe="dpo beta=0.1 on toy", options={"beta": 0.1}))
    assert {"dpo, 1/2 seeds", "ppo, over beta, 2 or 2/3 seeds"} <= {
        *legend(drawn("frontier", chosen(tmp_path)))
    }
    curves = legend(drawn("curves", chosen(tmp_path)))
    assert {"dpo, 1/2 seeds", "ppo (beta=0.1), 2/3 seeds", "ppo (beta=0.2), 2 seeds"} <= {*curves}


@pytest.mark.parametrize("kind", KINDS)
def test_draw_without_data_is_one_message(kind, tmp_path):
    put(tmp_path, failure("dpo"))
    with pytest.raises(NothingToDraw) as refusal:
        render(kind, chosen(tmp_path))
    assert "toy" in str(refusal.value) and "\n" not in str(refusal.value)


def test_draw_says_what_a_kind_needs(tmp_path):
    run(tmp_path, "ppo", 0, 2.0)
    selection = chosen(tmp_path)
    for kind, why in (
        ("wins", "needs two finished rows"),
        ("curves", "--snapshots"),
        ("overoptimization", "a sweep"),
    ):
        with pytest.raises(NothingToDraw, match=why):
            render(kind, selection)
    with pytest.raises(UsageError, match="Did you mean 'wins'"):
        render("win", selection)
    with pytest.raises(UsageError, match="png, svg or pdf"):
        render("frontier", selection, "jpg")


# -- the command -----------------------------------------------------------------------------------


def test_targets_of_names_the_files_of_kinds():
    here = Path("r")
    assert targets_of("frontier", None, here) == {"frontier": here / "frontier.png"}
    assert targets_of("wins", Path("x.SVG"), here) == {"wins": Path("x.SVG")}
    assert (
        targets_of("all", Path("d/x.pdf"), here)["cost"] == Path("d/x-cost.pdf") and len(KINDS) == 5
    )
    for wrong in ("x", "x.jpg", "x.svgz"):
        with pytest.raises(UsageError, match="one of .png, .svg, .pdf"):
            targets_of("wins", Path(wrong), here)


def test_plot_command_refuses_an_extension_before_reading(tmp_path):
    done = command("plot", "--results", tmp_path / "none", "-o", "x.jpg")
    assert done.code == 2 and ".png, .svg, .pdf" in done.err and "Traceback" not in done.text


def test_plot_command_all_names_kinds_without_data(tmp_path):
    run(tmp_path, "ppo", 0, 2.0)
    run(tmp_path, "dpo", 0, 1.0)
    told = list(draw_files(tmp_path, Filter(), "all", tmp_path / "p.png"))
    assert [line.split(":")[0] for line in told if line.startswith("no ")] == [
        "no curves",
        "no overoptimization",
    ]
    assert sorted(f.name for f in tmp_path.glob("*.png")) == [
        "p-cost.png",
        "p-frontier.png",
        "p-wins.png",
    ]
    put(tmp_path / "bad", failure("dpo"))
    with pytest.raises(UsageError, match="Nothing of toy can be drawn"):
        list(draw_files(tmp_path / "bad", Filter(), "all", None))


def test_plot_command_selects_runs(results, tmp_path):
    done = command(
        "plot",
        "--results",
        results,
        "-o",
        tmp_path / "x.svg",
        "--methods",
        "ppo,dpo",
        "--where",
        "beta=0.1",
    )
    assert done.code == 0 and done.out == f"wrote {tmp_path / 'x.svg'}\n"
    selection = chosen(results, methods=("ppo", "dpo"), where={"beta": "0.1"})
    assert len(selection.rows) == 3 and (tmp_path / "x.svg").read_bytes() == render(
        "frontier", selection, "svg"
    )
    done = command("plot", "--results", results, "--where", "beta")
    assert done.code == 2 and "expected name=value" in done.err
    done = command("plot", "--results", results, "-o", tmp_path / "new" / "a" / "x.svg")
    assert done.code == 0 and (tmp_path / "new" / "a" / "x.svg").is_file()
    done = command("plot", "--results", results, "-o", tmp_path / "x.svg" / "y.svg")
    assert done.code == 3 and "Cannot write" in done.err


def test_plot_command_draws_every_suite(tmp_path):
    for suite in ("one", "two"):
        run(tmp_path, "ppo", 0, 2.0, suite=suite)
        run(tmp_path, "dpo", 0, 1.0, suite=suite)
    put(tmp_path, failure("dpo", suite="broken", recipe="dpo-on-broken"))
    lines = list(draw_files(tmp_path, Filter(), "frontier", None))
    assert sorted(f.name for f in tmp_path.glob("*.png")) == [
        "frontier-one.png",
        "frontier-two.png",
    ]
    assert lines[0].startswith("broken left out: ")
    assert lines[1:] == [f"wrote {tmp_path / f'frontier-{suite}.png'}" for suite in ("one", "two")]
    list(draw_files(tmp_path, Filter(), "wins", tmp_path / "x.svg"))
    assert sorted(f.name for f in tmp_path.glob("*.svg")) == ["x-one.svg", "x-two.svg"]
