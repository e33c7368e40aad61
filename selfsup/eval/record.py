"""A number, and everything that says how it was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

TEXTS = ("protocol", "split", "metric")
REQUIRED = (*TEXTS, "value")
FRACTION = "fraction"
SPREADS = ("std", "interval")

#: Units of metrics whose files do not say them; files name the unit of every other metric that has one.
UNITS = dict.fromkeys(("top1", "miou", "map", "r_precision", "cluster_accuracy"), FRACTION) | {
    "seconds": "seconds",
    "attention_distance": "pixels",
}
#: Fields of a flat record that were found; a record whose protocol found others names them under ``found``.
FOUND = frozenset(
    [
        "seconds",
        "peak_memory_mb",
        "recall",
        "chosen",
        "settings",
        "per_class",
        "confusion",
        "values",
        "pixel_accuracy",
        "spectrum",
        "per_head",
        "amplitude",
    ]
)
#: Fields that say what was judged and not how: runs that are compared may differ in them.
JUDGED = frozenset(
    {"epoch", "seed", "seeds", "dim", "primary", "checkpoint", "pretrained", "mean", "std", "at", "start_digest"}
)
#: What ``at`` says of the weights that a run started from.
AT_START = "start"


@dataclass(frozen=True)
class Spread:
    """How far a value is uncertain.

    Attributes:
        value: Half the width, in the unit of the record.
        kind: ``std``, the standard deviation over seeds, or ``interval``, 95 % of a mean over episodes.
    """

    value: float
    kind: str = "std"


@dataclass(frozen=True, eq=False, kw_only=True)
class Record(Mapping[str, Any]):
    """One measurement. It reads like the dictionary in ``results.json``: ``record["k"]``, ``record.get("epoch")``.

    Attributes:
        protocol: Its name; whoever runs the protocol fills it in.
        split: Images the value is of: ``test``, ``holdout`` or ``train``.
        metric: Such as ``top1``.
        value: A finite number; accuracies are fractions.
        unit: ``fraction``, another word, or nothing.
        spread: How far it is uncertain, where that is known.
        how: Everything that says how it was measured. Two records that agree on it are the same measurement.
        found: What else came of it: seconds, the setting that was chosen, curves.
    """

    protocol: str = ""
    split: str
    metric: str
    value: float
    unit: str = ""
    spread: Spread | None = None
    how: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.unit:
            name = "recall" if self.metric.startswith("recall@") else self.metric
            object.__setattr__(self, "unit", FRACTION if name == "recall" else UNITS.get(name, ""))

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Record:
        """Read a record as ``results.json`` holds it.

        Raises:
            ValueError: It lacks its protocol, split, metric or value, or one of them is no text or no number.
        """
        if isinstance(flat, Record):
            return flat
        absent = [name for name in REQUIRED if name not in flat]
        if absent:
            raise ValueError(f"record without {', '.join(absent)}: {flat}")
        if not all(isinstance(flat[name], str) for name in TEXTS):
            raise ValueError(f"record of which {', '.join(TEXTS)} are not all text: {flat}")
        if not _is_number(flat["value"]):
            raise ValueError(f"record whose value is not a finite number: {flat}")
        rest = {name: value for name, value in flat.items() if name not in (*REQUIRED, "unit", "found", "input_std")}
        spread = None
        for kind in SPREADS:
            # the standard deviations of a network's input, one a channel, have the same name
            if isinstance(rest.get(kind), int | float):
                spread = Spread(rest.pop(kind), kind)
        if "input_std" in flat:
            rest["std"] = flat["input_std"]
        names = FOUND | set(flat.get("found", ()))
        return cls(
            **{name: flat[name] for name in REQUIRED},
            unit=flat.get("unit", ""),
            spread=spread,
            how={name: value for name, value in rest.items() if name not in names},
            found={name: value for name, value in rest.items() if name in names},
        )

    def flat(self) -> dict[str, Any]:
        """Return the record as ``results.json`` holds it: one dictionary of all fields."""
        flat = {name: getattr(self, name) for name in REQUIRED} | dict(self.how) | dict(self.found)
        if self.spread is not None:
            if self.spread.kind in flat:
                flat[f"input_{self.spread.kind}"] = flat[self.spread.kind]
            flat[self.spread.kind] = self.spread.value
        plain = Record(split=self.split, metric=self.metric, value=self.value)
        if self.unit != plain.unit:
            flat["unit"] = self.unit
        others = [name for name in self.found if name not in FOUND]
        return flat | ({"found": others} if others else {})

    @property
    def identity(self) -> str:
        """What makes it this measurement and no other, as text."""
        return json.dumps([self.protocol, self.split, self.metric, dict(self.how)], sort_keys=True)

    @property
    def conditions(self) -> dict[str, Any]:
        """What two runs must have in common for their values to be compared."""
        return {name: value for name, value in self.how.items() if name not in JUDGED} | {"split": self.split}

    def text(self, digits: int = 2) -> str:
        """Return the value with its spread, fractions in percent with so many digits."""
        scale, sign, form = (100, " %", f".{digits}f") if self.unit == FRACTION else (1, "", ".4g")
        spread = f" ± {scale * self.spread.value:{form}}" if self.spread is not None else ""
        return f"{scale * self.value:{form}}{spread}{sign}"

    def check(self) -> None:
        """Raise a ValueError unless the value is a finite number."""
        if not isinstance(self.value, int | float) or not math.isfinite(self.value):
            raise ValueError(f"record whose value is not a finite number: {self.flat()}")

    def __getitem__(self, name: str) -> Any:
        return self.flat()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.flat())

    def __len__(self) -> int:
        return len(self.flat())


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float holds, NaN and infinity included."""
    if not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:  # whole numbers of JSON have no end
        return False
    return True
