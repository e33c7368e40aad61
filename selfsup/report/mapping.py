"""What the interactive map of a page needs: points, classes and neighbours of every run, and their images once."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfsup.report.atlas import Atlas
from selfsup.report.compared import Compared


def map_data(runs: Compared) -> tuple[str, list[str]] | None:
    """Return the data of the map as JSON, and the sheets of images in base64; or None where no run has a map.

    Runs whose images are the same have one sheet: a point of one is the same image in the other.
    """
    sheets: list[bytes] = []
    maps = []
    for name, run in zip(runs.names, runs.runs, strict=True):
        atlas = run.atlas
        if atlas is None:
            continue
        if atlas.sheet not in sheets:
            sheets.append(atlas.sheet)
        maps.append(_map(name, atlas, sheets.index(atlas.sheet)))
    if not maps:
        return None
    return json.dumps({"maps": maps}), [base64.b64encode(sheet).decode() for sheet in sheets]


def _map(name: str, atlas: Atlas, sheet: int) -> dict[str, Any]:
    low, high = atlas.points.min(0), atlas.points.max(0)
    places = (atlas.points - low) / max(float((high - low).max()), 1e-9)
    labels = sorted(set(atlas.labels.tolist()))
    position = {label: place for place, label in enumerate(labels)}
    return {
        "name": name,
        "title": atlas.title,
        "sheet": sheet,
        "side": atlas.side,
        "columns": atlas.columns,
        "classes": [_class_name(label, atlas.classes) for label in labels],
        "points": _packed((65535 * places).round(), np.uint16),
        "labels": _packed(np.array([position[label] for label in atlas.labels.tolist()]), np.uint16),
        "neighbours": _packed(atlas.neighbours, np.uint16),
        "nearest": atlas.neighbours.shape[1],
    }


def _class_name(label: int, classes: tuple[str, ...]) -> str:
    if label < 0:
        return "no label"
    return classes[label] if label < len(classes) else str(label)


def _packed(values: NDArray[Any], kind: type[np.uint16]) -> str:
    """Return numbers as base64 of 16 bits each, the lower byte first."""
    return base64.b64encode(values.astype(np.dtype(kind).newbyteorder("<")).tobytes()).decode()
