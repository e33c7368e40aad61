"""Which cue a classifier on frozen features takes, with the scenes it was asked."""

from __future__ import annotations

from typing import Any

from selfsup.report.drawing import BLUE, Evaluated, chart, new_figure, show_image


@chart("shortcuts")
def shortcuts_chart(evaluated: Evaluated) -> Any:
    """Draw the ``shortcuts`` records as bars, and some of the scenes."""
    records = evaluated.of("shortcuts")
    if not records or "shortcuts" not in evaluated.shown:
        return None
    values = {(r.metric, r["cue"]): r["value"] for r in records}
    cues = list(dict.fromkeys(r["cue"] for r in records))
    scenes = evaluated.shown["shortcuts"]()
    figure = new_figure(10.0, 5.6)
    grid = figure.add_gridspec(2, 1, height_ratios=[1.0, 1.5])
    pictures = grid[0].subgridspec(1, len(scenes.equal) + len(scenes.opposed))
    for place, image in enumerate([*scenes.equal, *scenes.opposed]):
        axes = figure.add_subplot(pictures[place])
        show_image(axes, image, None)
        asked = place - len(scenes.equal)
        title = f"class {place}" if asked < 0 else f"taken for {int(scenes.answer[asked])}"
        axes.set_title(title, fontsize=8)
    axes = figure.add_subplot(grid[1])
    for shift, (metric, colour, label) in enumerate(
        (
            ("preference", BLUE, "preference: the answer where no two cues agree"),
            ("recoverable", "#aaaaaa", "recoverable: accuracy where the cue itself is asked for"),
        )
    ):
        heights = [values[metric, cue] for cue in cues]
        bars = axes.bar([x + 0.4 * shift for x in range(len(cues))], heights, 0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{100 * h:.0f} %" for h in heights], fontsize=8)
    axes.axhline(0.25, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks([x + 0.2 for x in range(len(cues))], cues)
    axes.set(ylim=(0, 1.12), ylabel="share (dashed: chance)")
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    return figure
