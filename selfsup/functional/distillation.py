"""What a student learns from a teacher that stays as it is: its similarities to other images, and its feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import floats, is_count, number


def similarity_distillation(
    student: Tensor, teacher: Tensor, queue: Tensor, temperature: float = 0.07, teacher_temperature: float = 0.07
) -> Tensor:
    r"""Let a student compare an image with others as its teacher does.

    What the image is compared with are the teacher's own feature of it, :math:`t_i`, and a queue of the teacher's
    features of earlier images, :math:`q_1 \dots q_K`: :math:`A_i = (t_i, q_1, \dots, q_K)`. They stand for classes.

    .. math:: \frac{1}{N} \sum_i \operatorname{KL}\bigl(\operatorname{softmax}(t_i \cdot A_i / \tau_t) \,\|\,
              \operatorname{softmax}(s_i \cdot A_i / \tau_s)\bigr)

    The paper's loss is the cross-entropy, which has the same gradient and is larger by the entropy of the targets. As
    :math:`\tau_t` goes to 0 this becomes InfoNCE with :math:`t_i` as the key and the queue as negatives.

    Args:
        student, teacher: Features of the same images ``[N,D]``; L2-normalised here. The teacher's are detached. Float16
            and bfloat16 become float32.
        queue: ``[K,D]``, used as stored; detached.
        temperature, teacher_temperature: :math:`\tau_s, \tau_t > 0`.

    Returns:
        Scalar, at least 0 and, at equal temperatures, 0 where the student is the teacher. The mean over this process's
        images.

    Raises:
        ValueError: Shapes that do not fit, or a temperature that is not above 0.

    Source:
        Fang et al., "SEED: Self-supervised Distillation for Visual Representation", 2021, equations 3 to 6;
        jacobswan1/SEED, 81ff933.
    """
    student, teacher, queue = floats(
        "similarity_distillation", "[N,D] [N,D] [K,D]", student=student, teacher=teacher, queue=queue
    )
    number("similarity_distillation", above=0, temperature=temperature, teacher_temperature=teacher_temperature)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher, queue = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1), queue.detach()

        def said(features: Tensor, tau: float) -> Tensor:
            own = (features * teacher).sum(dim=1, keepdim=True)
            return F.log_softmax(torch.cat([own, features @ queue.T], dim=1) / tau, dim=1)

        told = said(teacher, teacher_temperature)
        return F.kl_div(said(student, temperature), told, reduction="batchmean", log_target=True)


def resample_map(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a feature map ``[B,D,h,w]`` on another grid of the same image, ``[B,D,rows,columns]``.

    The outer edges of both grids lie on each other. A finer grid is interpolated, a coarser one is averaged: its cells
    weigh all that they cover, so that nothing is skipped.

    Args:
        features: Float16 and bfloat16 become float32.
        size: Rows and columns.

    Raises:
        ValueError: No map, or a side below 1.
    """
    (features,) = floats("resample_map", "[B,D,h,w]", features=features)
    if not isinstance(size, tuple) or len(size) != 2 or not all(map(is_count, size)):
        raise ValueError(f"resample_map: size must be rows and columns of at least 1, not {size!r}.")
    if features.shape[-2:] == tuple(size):
        return features
    return F.interpolate(features, tuple(size), mode="bilinear", align_corners=False, antialias=True)


def map_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Let every cell of a student's map point where its teacher's points: :math:`1 - \cos`, over all cells.

    .. math:: 1 - \frac{1}{B S^2} \sum_{b,p} \cos(s_{bp}, t_{bp})

    Args:
        student: ``[B,D,h,w]``; brought to the teacher's grid by :func:`resample_map`.
        teacher: ``[B,D,rows,columns]``; detached. Float16 and bfloat16 become float32.

    Returns:
        Scalar in [0, 2], the mean over this process's images.

    Raises:
        ValueError: Shapes that do not fit.

    Source:
        The teacher's map as the target and one resampled to the other's grid as in lightly-train's second
        distillation, which has squared differences in place of the cosine.
    """
    student, teacher = floats("map_distillation", "[B,D,h,w] [B,D,r,c]", student=student, teacher=teacher)
    with torch.autocast(student.device.type, enabled=False):
        student = resample_map(student, (teacher.shape[2], teacher.shape[3]))
        return 1 - (F.normalize(student, dim=1) * F.normalize(teacher.detach(), dim=1)).sum(dim=1).mean()
