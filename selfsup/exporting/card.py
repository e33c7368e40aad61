"""The model card: what a backbone is, what was measured of it, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfsup.eval.results import FILE, read_results
from selfsup.exporting.trained import Trained
from selfsup.tables import markdown_table
from selfsup.types import size_words


def model_card(run: Trained, code: str) -> str:
    """Return the Markdown that says what a run's backbone is, what was measured of it, and how to load it.

    Args:
        run: The run.
        code: Python that loads the weights.

    Raises:
        UserError: The run's ``results.json`` is broken.
    """
    config = run.settings
    data, method = config["data"], config["method"]
    facts = {
        "Method": method["name"] + _settings({k: v for k, v in method.items() if k != "name"}),
        "Data": f"{data['name']}, {size_words(data['image_size'])} pixels"
        + (f", {data['limit']} images" if data["limit"] else ""),
        "Epochs": f"{run.opened.epochs}, {config['batch_size']} images a step, seed {config['seed']}",
        "Network": run.config.name + _settings({k: v for k, v in vars(run.config).items() if k != "name"}),
        "Features": f"{run.backbone.dim} numbers an image, averaged over the map where the network does so",
        "Input": f"{run.channels} channel(s), scaled to [0, 1], then (x - mean) / std",
        "Mean": str(list(run.normalization.mean)),
        "Standard deviation": str(list(run.normalization.std)),
    }
    for group in ("objective", "negatives"):  # which earlier versions did not have
        given = dict(config.get(group) or {"name": "none"})
        if (name := given.pop("name")) != "none":
            facts[group.capitalize()] = name + _settings(given)
    lines = ["---", "library_name: selfsup", "tags: [self-supervised, image-feature-extraction]", "---", ""]
    lines += [f"# {run.config.name}, trained with {method['name']} on {data['name']}", ""]
    lines += [markdown_table(["", ""], list(facts.items())), "## Results", "", _results(run)]
    lines += ["## Load it", "", "```python", code, "```", ""]
    return "\n".join(lines)


def _results(run: Trained) -> str:
    records = read_results(run.folder) if (run.folder / FILE).exists() else []
    shown = [r for r in records if r["protocol"] != "training" and r.get("epoch") == run.opened.epochs]
    if not shown:
        return "Not evaluated yet.\n"
    common = {"protocol", "metric", "value", "split", "seconds", "peak_memory_mb", "epoch"}
    rows = []
    for record in shown:
        details = {k: v for k, v in record.items() if k not in common and isinstance(v, str | int | float)}
        written = ", ".join(f"{key} {value}" for key, value in details.items())
        rows.append([record["protocol"], record["metric"], f"{record['value']:.4g}", record["split"], written])
    return markdown_table(["protocol", "metric", "value", "on", "details"], rows)


def _settings(values: Mapping[str, Any]) -> str:
    written = ", ".join(f"{key}={value}" for key, value in values.items() if value not in (None, {}, []))
    return f" ({written})" if written else ""
