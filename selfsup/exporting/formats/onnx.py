"""The network as a graph for ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from selfsup.errors import UserError, packages
from selfsup.exporting.format import export_format, quiet
from selfsup.exporting.trained import Features, Trained
from selfsup.types import height_width
from selfsup.writing import writing


@export_format("onnx")
def write(run: Trained, draft: Path, target: Path) -> tuple[Features, str]:
    """ONNX graph, which takes images in [0, 1]."""
    _, _, runtime = packages("--format onnx", "export", "onnx", "onnxscript", "onnxruntime")
    if sum(value.nbytes for value in run.state.values()) > 1.9e9:
        raise UserError("--format onnx: an ONNX file holds at most 2 GB; use --format exported.")
    with quiet():
        program = torch.onnx.export(
            run.with_normalization(),
            (run.images(2),),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert program is not None  # as it is with dynamo
        with writing(target):
            program.save(draft, external_data=False)
    session = runtime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])

    def read_back(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    height, width = height_width(run.image_size)
    return read_back, (
        f"import onnxruntime\n\nsession = onnxruntime.InferenceSession({str(target)!r})\n"
        f"# images: float32 [B,{run.channels},{height},{width}] in [0, 1]\n"
        '(features,) = session.run(None, {"images": images})'
    )
