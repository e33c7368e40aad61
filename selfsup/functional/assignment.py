"""Learning by assignment: Sinkhorn codes, SwAV's swapped prediction, DINO, clusters by k-means, TWIST."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import answer, count, floats, full_precision, integers, looks_at, number, within
from selfsup.functional.collectives import gather, size_of, sum_over


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
        scores: ``[N,K]``, this rank's samples, of which ranks may have different numbers, also none. Float16 and
            bfloat16 become float32.
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
    (scores,) = floats("sinkhorn", "[N?,K]", scores=scores)
    number("sinkhorn", above=0, epsilon=epsilon)
    count("sinkhorn", iterations=iterations)
    if group is None and not len(scores):
        return scores
    with torch.autocast(scores.device.type, enabled=False):
        top = scores.max() if len(scores) else scores.new_tensor(-torch.inf)
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


@torch.no_grad()
def spherical_lloyd(points: Tensor, centroids: Tensor, iterations: int = 10) -> tuple[Tensor, Tensor]:
    r"""Spherical k-means by Lloyd's iterations from given centroids.

    Every point goes to the centroid with the greatest product, and every centroid becomes the direction of the sum of
    its points; one without points stays where it is.

    Args:
        points: ``[N,D]``, used as they are: unit vectors. Float16 and bfloat16 become float32.
        centroids: Where to begin, unit vectors ``[K,D]``.
        iterations: Rounds, at least 1.

    Returns:
        The centroids ``[K,D]``, of length 1, and int64 ``[N]``, the nearest of them to each point.

    Raises:
        ValueError: Shapes that do not fit, or no rounds.

    Source:
        Dhillon and Modha, "Concept Decompositions for Large Sparse Text Data using Clustering", 2001.
    """
    points, centroids = floats("spherical_lloyd", "[N,D] [K,D]", points=points, centroids=centroids)
    count("spherical_lloyd", iterations=iterations)
    with torch.autocast(points.device.type, enabled=False):
        parts = torch.split(points, 8192)  # the scores of all points at once would be N × K
        for _ in range(iterations):
            total, used = torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
            for part in parts:
                # a product and no scatter, whose order of addition, and so rounding, is left to chance on a GPU
                near = (part @ centroids.T).argmax(dim=1, keepdim=True)
                member = part.new_zeros(len(part), len(centroids)).scatter_(1, near, 1.0)
                total += member.T @ part
                used += member.sum(dim=0)
            centroids = torch.where(used[:, None] > 0, F.normalize(total, dim=1), centroids)
        return centroids, torch.cat([(part @ centroids.T).argmax(dim=1) for part in parts])


def deepcluster_loss(scores: Sequence[Tensor], assignment: Tensor, temperature: float) -> Tensor:
    r"""DeepCluster v2: cross-entropy of every view with the cluster of its image, in each of several clusterings.

    .. math:: \frac{1}{H} \sum_h \frac{1}{VN} \sum_{v,n} -\log \operatorname{softmax}(s^{(h)}_{vn} / \tau)_{a_{hn}}

    Args:
        scores: H tensors ``[V,N,K_h]`` of the V views. Float16 and bfloat16 become float32.
        assignment: int64 ``[H,N]``, the cluster of each image, the same for all its views.
        temperature: :math:`\tau > 0`.

    Returns:
        Scalar, the mean over this process's images.

    Raises:
        ValueError: Shapes that do not fit, or a cluster that there is not.

    Source:
        Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020, appendix on
        DeepCluster v2.
    """
    named = {f"scores[{i}]": x for i, x in enumerate(scores)}
    if not named:
        raise ValueError("deepcluster_loss: scores must be of one clustering or more, got none.")
    checked = floats("deepcluster_loss", " ".join(f"[V,N,K{i}]" for i in range(len(named))), nan=False, **named)
    views, images = checked[0].shape[:2]
    integers("deepcluster_loss", f"[{len(checked)},{images}]", assignment=assignment)
    number("deepcluster_loss", above=0, temperature=temperature)
    total = checked[0].new_zeros(())
    with torch.autocast(total.device.type, enabled=False):
        for score, cluster in zip(checked, assignment, strict=True):
            within("deepcluster_loss", 0, score.shape[2], assignment=cluster)
            total = total + F.cross_entropy(score.flatten(0, 1) / temperature, cluster.repeat(views))
        return total / len(checked)


def momentum_groups(z: Tensor, groups: Tensor, momentum: float, group: dist.ProcessGroup | None = None) -> Tensor:
    r"""SMoG's groups after a batch: each moves towards the mean of the embeddings that are nearest to it.

    .. math:: g_k \leftarrow \operatorname{unit}\Big(\beta g_k + (1 - \beta) \frac{1}{|C_k|} \sum_{i \in C_k} z_i\Big)

    A group that no embedding is nearest to stays as it is. The gradient flows through the embeddings into the groups:
    that is what keeps groups and embeddings in step.

    Args:
        z: Embeddings ``[N,D]``; L2-normalised here. Float16 and bfloat16 become float32.
        groups: Unit vectors ``[K,D]``.
        momentum: :math:`\beta` in [0, 1].
        group: Process group whose embeddings count; None for a single process. Every rank has the same N.

    Returns:
        ``[K,D]``, of length 1.

    Raises:
        ValueError: Shapes that do not fit, or a momentum out of range.

    Source:
        Pang et al., "Unsupervised Visual Representation Learning by Synchronous Momentum Grouping", 2022, section 3.
    """
    z, groups = floats("momentum_groups", "[N,D] [K,D]", z=z, groups=groups)
    number("momentum_groups", least=0, momentum=momentum)
    if momentum > 1:
        raise ValueError(f"momentum_groups: momentum must be from 0 to 1, got {momentum!r}.")
    with torch.autocast(z.device.type, enabled=False):
        everybody = gather(F.normalize(z, dim=1), group)
        near = (everybody.detach() @ groups.T).argmax(dim=1, keepdim=True)
        member = everybody.new_zeros(len(everybody), len(groups)).scatter_(1, near, 1.0)
        size = member.sum(dim=0)[:, None]
        mean = member.T @ everybody / size.clamp_min(1)
        return torch.where(size > 0, F.normalize(momentum * groups + (1 - momentum) * mean, dim=1), groups)


def group_prediction(prediction: Tensor, groups: Tensor, target: Tensor, temperature: float) -> Tensor:
    r"""Cross-entropy of predictions with the group that each image belongs to, averaged over the images.

    .. math:: -\frac{1}{N} \sum_i \log \operatorname{softmax}(p_i \cdot G / \tau)_{c(i)}

    where c(i) is the group with the greatest product with the target of image i.

    Args:
        prediction: ``[N,D]``; L2-normalised here, and not what follows. Float16 and bfloat16 become float32.
        groups: Unit vectors ``[K,D]`` to be predicted; gradients reach those that carry them.
        target: Products ``[N,K]`` of each image's other view with the groups; detached.
        temperature: :math:`\tau > 0`.

    Raises:
        ValueError: Shapes that do not fit, or an argument out of its range.

    Source:
        Pang et al., "Unsupervised Visual Representation Learning by Synchronous Momentum Grouping", 2022, section 3.
    """
    prediction, groups, target = floats(
        "group_prediction", "[N,D] [K,D] [N,K]", prediction=prediction, groups=groups, target=target
    )
    number("group_prediction", above=0, temperature=temperature)
    with torch.autocast(prediction.device.type, enabled=False):
        logits = F.normalize(prediction, dim=1) @ groups.T / temperature
        return F.cross_entropy(logits, target.detach().argmax(dim=1))


def twist_loss(
    logits1: Tensor,
    logits2: Tensor,
    temperature: float = 1.0,
    evenness_weight: float = 1.0,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""TWIST: two views have one class distribution, each image's is sharp, and that of all images is even.

    .. math:: \frac12 \bigl( KL(p_1 \Vert p_2) + KL(p_2 \Vert p_1) \bigr)
              + \frac12 \sum_v \Bigl( \frac1N \sum_n H(s_{v,n}) - \lambda H\bigl(\tfrac1N \sum_n s_{v,n}\bigr) \Bigr)

    with :math:`p = \operatorname{softmax}(l)`, the mean over the images, and
    :math:`s = \operatorname{softmax}(l / \tau)`. At
    :math:`\lambda = 1` the second part is minus the mutual information of image and class: from 0 for one distribution
    of all images down to -log K for sharp and even ones.

    Args:
        logits1, logits2: Of the two views ``[N,K]``, batch-normalised by the head. Float16 and bfloat16 become float32.
        temperature: :math:`\tau`.
        evenness_weight: :math:`\lambda`.
        group: The even distribution is over the images of all its ranks; None for a single process.

    Returns:
        Scalar. With DDP's mean over ranks, value and gradient are those of one process with all images.

    Raises:
        ValueError: The shapes differ or are not ``[N,K]``, or a setting is out of range.

    Source:
        Wang et al., "Self-Supervised Learning by Estimating Twin Class Distributions", 2021, with the authors' code
        (bytedance/TWIST, 1283a55), which adds 1e-5 inside the logarithms and sums over ranks where this averages.
    """
    views = floats("twist_loss", "[N,K]", logits1=logits1, logits2=logits2)
    number("twist_loss", above=0, temperature=temperature)
    number("twist_loss", evenness_weight=evenness_weight)
    with torch.autocast(logits1.device.type, enabled=False):
        log1, log2 = (F.log_softmax(logits, dim=1) for logits in views)
        loss = ((log1.exp() - log2.exp()) * (log1 - log2)).sum(1).mean() / 2
        for logits in views:
            log_sharp = F.log_softmax(logits / temperature, dim=1)
            loss = loss - (log_sharp.exp() * log_sharp).sum(1).mean() / 2
            share = sum_over(log_sharp.exp().sum(0), group) / (len(logits) * size_of(group))
            loss = loss - evenness_weight * torch.special.entr(share).sum() / 2
        return answer("twist_loss", loss, "logits1 and logits2")
