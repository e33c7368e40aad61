"""The doctor: where a training step's time goes, how near it comes to the limit, and which settings would help.

>>> report = selfsup.doctor(config)
"""

import inspect
import sys
from types import ModuleType
from typing import Any

from selfsup.doctor.examination import doctor
from selfsup.doctor.report import Extra, Phase, Report, Trial

__all__ = ["Extra", "Phase", "Report", "Trial", "doctor"]


class _Called(ModuleType):
    """Lets the package be called like its function: Python names the package ``selfsup.doctor`` once it is imported."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return doctor(*args, **kwargs)


__signature__ = inspect.signature(doctor)
sys.modules[__name__].__class__ = _Called
