"""Weights as safetensors, beside a model card."""

from __future__ import annotations

import json
from pathlib import Path

import timm

from selfsup import __version__
from selfsup.exporting.card import model_card
from selfsup.exporting.format import export_format, loading
from selfsup.exporting.trained import Features, Trained
from selfsup.nn import BackboneConfig
from selfsup.writing import writing

FILE_OF_WEIGHTS = "model.safetensors"


@export_format("safetensors")
def write(run: Trained, draft: Path, target: Path) -> tuple[Features, str]:
    """Folder with model.safetensors and a model card, README.md."""
    from safetensors.torch import save

    about = {"format": "pt", "backbone": json.dumps(run.settings["backbone"]), "selfsup": __version__}
    weights = save(run.state, about)

    def code(folder: Path) -> str:
        read = f"load_file({str(folder / FILE_OF_WEIGHTS)!r})"
        if timm.is_model(run.config.name):
            imports = ["import timm", "import torch", "from safetensors.torch import load_file"]
            return loading(imports, run.timm_network(), read)
        usual = vars(BackboneConfig())
        settings = ", ".join(
            f"{key}={value!r}" for key, value in vars(run.config.network).items() if value != usual[key]
        )
        imports = ["from safetensors.torch import load_file", "from selfsup.nn import BackboneConfig, build_backbone"]
        network = f"network = build_backbone(BackboneConfig({settings}), {run.channels}).network"
        return loading(imports, [network], read)

    card = model_card(run, code(Path()))
    with writing(target):
        draft.mkdir()
        (draft / FILE_OF_WEIGHTS).write_bytes(weights)
        (draft / "README.md").write_text(card, "utf-8")
    return run.execute(code(draft)), code(target)
