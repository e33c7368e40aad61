"""Learning by assignment: Sinkhorn codes, SwAV's swapped prediction and DINO's self-distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import count, floats, full_precision, looks_at, number


@torch.no_grad()
def sinkhorn(
    scores: Tensor, epsilon: float = 0.05, iterations: int = 3, group: dist.ProcessGroup | None = None
) -> Tensor:
    r"""Soft assignments of samples to prototypes that use all prototypes about equally (Sinkhorn-Knopp).

    Starts from :math:`\exp(s / \epsilon)`. Every iteration first gives each prototype the share 1/K of the whole, then
    each sample its share 1/N. Because the samples come last, the rows sum to 1 exactly while the use of the prototypes
    is even only approximately after few iterations.

    The largest score of all ranks is taken out before the exponential: the result is the same, and nothing overflows.
    Targets need no gradient and get none.

    Args:
        scores: ``[N,K]``, this rank's samples; ranks may have different N. Float16 and bfloat16 become float32.
        epsilon: Smoothness :math:`\epsilon > 0`; towards 0 the assignments become hard, and uniform when it is large.
        iterations: At least 1.
        group: Process group whose samples are assigned together; None for a single process.

    Returns:
        ``[N,K]``, this rank's rows of the assignment of all samples.

    Raises:
        ValueError: Scores that are not ``[N,K]``, or a setting out of range.

    Source:
        Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020, equations 3
        to 5; Cuturi, "Sinkhorn Distances", 2013.
    """
    (scores,) = floats("sinkhorn", "[N,K]", scores=scores)
    number("sinkhorn", above=0, epsilon=epsilon)
    count("sinkhorn", iterations=iterations)
    with torch.autocast(scores.device.type, enabled=False):
        top = scores.max()
        if group is not None:
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        codes = ((scores - top) / epsilon).exp()
        if group is None and looks_at(codes) and not (codes.sum(dim=0).all() and codes.sum(dim=1).all()):
            return _sinkhorn_of_logarithms(scores.double() / epsilon, iterations).to(scores.dtype)
        smallest = torch.finfo(codes.dtype).tiny  # a prototype or sample that underflowed everywhere stays at zero
        for _ in range(iterations):
            use = codes.sum(dim=0)
            if group is not None:
                dist.all_reduce(use, group=group)
            # the constants 1/K and 1/N of the marginals cancel: the next line makes every row sum to 1
            codes = codes / use.clamp_min(smallest)
            codes = codes / codes.sum(dim=1, keepdim=True).clamp_min(smallest)
        return codes


def _sinkhorn_of_logarithms(logits: Tensor, iterations: int) -> Tensor:
    """The same where the exponential of a whole row or column vanishes; slower."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=0)
        logits = logits - logits.logsumexp(dim=1, keepdim=True)
    return logits.exp()


def swapped_prediction(scores: Sequence[Tensor], codes: Sequence[Tensor], temperature: float) -> Tensor:
    r"""Cross-entropy of every view's prediction with the codes of each *other* view that has codes.

    .. math:: \frac{1}{C} \sum_{i < C} \frac{1}{V-1} \sum_{v \ne i} \frac{1}{N} \sum_n
              -\sum_k q^{(i)}_{nk} \log \operatorname{softmax}(s^{(v)}_n / \tau)_k

    Args:
        scores: V tensors ``[N,K]``. Float16 and bfloat16 become float32.
        codes: Targets of the first C views, ``[N,K]`` each with rows that sum to 1, 1 <= C <= V. They are detached.
        temperature: :math:`\tau > 0`.

    Returns:
        Scalar, the mean over this process's images: DDP's mean over ranks is the value over all of them.

    Raises:
        ValueError: Fewer than two views, no codes or more than there are views, or shapes that differ.

    Source:
        Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020, equations 2
        and 6.
    """
    views, coded = len(scores), len(codes)
    if views < 2 or not 1 <= coded <= views:
        raise ValueError(
            "swapped_prediction: scores must be of two views or more and codes of the first of them, got "
            f"{views} scores and {coded} codes."
        )
    named = {f"scores[{i}]": x for i, x in enumerate(scores)} | {f"codes[{i}]": x for i, x in enumerate(codes)}
    checked = floats("swapped_prediction", "[N,K]", nan=False, **named)
    scores, codes = checked[:views], checked[views:]
    number("swapped_prediction", above=0, temperature=temperature)
    with torch.autocast(scores[0].device.type, enabled=False):
        total = scores[0].new_zeros(())
        for position, score in enumerate(scores):
            log_prediction = F.log_softmax(score / temperature, dim=1)
            for other, code in enumerate(codes):
                if other != position:
                    total = total - (code.detach() * log_prediction).sum(dim=1).mean()
        return total / (coded * (views - 1))


def dino_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    r"""Cross-entropy of the student's views with the teacher's centred and sharpened *other* views.

    The mean over all pairs (teacher's view i, student's view v with v ≠ i) and images of

    .. math:: -\sum_k \operatorname{softmax}((t^{(i)} - c) / \tau_t)_k \log \operatorname{softmax}(s^{(v)} / \tau_s)_k

    which is :func:`swapped_prediction` with the teacher's distributions as codes.

    Args:
        student: V tensors of logits ``[N,K]``. Float16 and bfloat16 become float32.
        teacher: Logits of the first views, ``[N,K]`` each. They are detached.
        center: ``[K]`` or broadcastable to ``[N,K]``, subtracted from the teacher's logits; detached.
        student_temperature, teacher_temperature: :math:`\tau_s, \tau_t > 0`.

    Returns:
        Scalar, the mean over this process's images.

    Raises:
        ValueError: As :func:`swapped_prediction`.

    Source:
        Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, equations 1 to 3.
    """
    named = {f"student[{i}]": x for i, x in enumerate(student)} | {f"teacher[{i}]": x for i, x in enumerate(teacher)}
    if len(student) < 2 or not 1 <= len(teacher) <= len(student):
        raise ValueError(
            "dino_loss: student must hold two views or more and teacher the first of them, got "
            f"{len(student)} and {len(teacher)}."
        )
    floats("dino_loss", "[N,K]", nan=False, **named)
    floats("dino_loss", "[...,K]", center=center)
    number("dino_loss", above=0, student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    with torch.autocast(center.device.type, enabled=False):
        targets = [
            F.softmax((full_precision(t.detach()) - center.detach()) / teacher_temperature, dim=1) for t in teacher
        ]
    return swapped_prediction(student, targets, student_temperature)
