"""A whole evaluation in one call, for tests."""

import copy
from pathlib import Path

from selfsup.eval import Encoder, Subject, measure
from selfsup.report import Evaluated, draw_figures


def subject_of(network, splits, config, cache_dir=None, **about):
    encoder = Encoder(network, config.batch_size, precision=config.precision, progress=False)
    return Subject(encoder, splits, config, cache_dir=cache_dir, **about)


def evaluate(network, splits, config, protocols="all", *, run_dir=None, facts=None, **about):
    """Measure, keep records and features in a folder, and draw, as the settings say."""
    cache = Path(run_dir) / "features" if run_dir is not None and config.cache else None
    subject = subject_of(network, splits, config, cache, **about)
    records = measure(subject, protocols, run_dir=run_dir, facts=facts)
    if run_dir is not None and config.figures:
        draw_figures(Evaluated(records, subject.shown, splits.train.classes), Path(run_dir) / "figures")
    return records


def changed(config, **values):
    """The settings with other values; those of a protocol as a dictionary."""
    config = copy.deepcopy(config)
    for name, value in values.items():
        if isinstance(value, dict):
            for inner, one in value.items():
                assert hasattr(getattr(config, name), inner)
                setattr(getattr(config, name), inner, one)
        else:
            assert hasattr(config, name)
            setattr(config, name, value)
    return config
