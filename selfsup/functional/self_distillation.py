"""What token methods add to self-distillation: masked tokens, images kept apart, similar patches held."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from selfsup.functional.arguments import count, floats, integers, number, within
from selfsup.functional.collectives import gather, rank_of

_EPS = 1e-8  # DINOv2's; the logarithm of two equal images is that of this


def masked_cross_entropy(student: Tensor, target: Tensor, image: Tensor, images: int, temperature: float) -> Tensor:
    r"""Cross-entropy of masked tokens with their targets, every image of the same weight however much of it is masked.

    .. math:: \frac{1}{N} \sum_n \frac{1}{|M_n|} \sum_{l \in M_n}
              -\sum_k q_{lk} \log \operatorname{softmax}(s_l / \tau)_k

    An image without a masked token adds nothing and stays in the mean over all N. Without any token the loss is 0.

    Args:
        student: Logits of the masked tokens of all images, ``[M,K]``. Float16 and bfloat16 become float32.
        target: ``[M,K]``, rows that sum to 1; detached.
        image: int64 ``[M]``, the image of each token, from 0 to ``images - 1``.
        images: Number N of images.
        temperature: :math:`\tau > 0`.

    Returns:
        Scalar, the mean over this process's images.

    Raises:
        ValueError: Shapes that do not fit, an image outside of the range, or a setting out of range.

    Source:
        Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", 2021, equation 2; Oquab et al., "DINOv2",
        2023.
    """
    student, target = floats("masked_cross_entropy", "[M?,K]", student=student, target=target)
    integers("masked_cross_entropy", "[M?]", image=image)
    count("masked_cross_entropy", images=images)
    number("masked_cross_entropy", above=0, temperature=temperature)
    within("masked_cross_entropy", 0, images, image=image)
    if len(image) != len(student):
        raise ValueError(f"masked_cross_entropy: image has {len(image)} entries for {len(student)} tokens of student.")
    with torch.autocast(student.device.type, enabled=False):
        entropy = -(target.detach() * F.log_softmax(student / temperature, dim=1)).sum(dim=1)
        masked = torch.zeros(images, dtype=entropy.dtype, device=entropy.device)
        masked.index_add_(0, image, torch.ones_like(entropy))
        return (entropy / masked[image]).sum() / images


def koleo_loss(features: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    r"""Keep every image away from its nearest neighbour (the entropy estimate of Kozachenko and Leonenko).

    .. math:: -\frac{1}{N} \sum_i \log \bigl(\lVert x_i - x_{\nu(i)} \rVert + 10^{-8}\bigr)

    with :math:`x` the L2-normalised features and :math:`\nu(i)` the other image of the largest cosine. Both ends of a
    distance get its gradient; two equal images get none from each other.

    Args:
        features: ``[N,D]``. Float16 and bfloat16 become float32: in half precision the distance of near images and
            the added constant vanish, and the logarithm is infinite.
        group: Ranks whose images are neighbours, too. (The authors look within a rank, where fewer images are farther
            apart; DINOv3's code can look over several.) None is this process alone.

    Returns:
        Scalar, the mean over this process's images: DDP's mean over ranks is the value over all of them.

    Raises:
        ValueError: Features that are not ``[N,D]``, or fewer than two images.

    Source:
        Sablayrolles et al., "Spreading vectors for similarity search", 2018; Oquab et al., "DINOv2", 2023;
        facebookresearch/dinov2 b8931f7.
    """
    (features,) = floats("koleo_loss", "[N,D]", features=features)
    with torch.autocast(features.device.type, enabled=False):
        own = F.normalize(features, dim=1)
        everyone = gather(own, group)
        if len(everyone) < 2:
            raise ValueError("koleo_loss: features must be of two images or more, as each needs a neighbour.")
        with torch.no_grad():
            cosines = own @ everyone.T
            place = torch.arange(len(own), device=own.device)
            cosines[place, place + rank_of(group) * len(own)] = -2.0
            nearest = torch.argmax(cosines, dim=1)
        distance = torch.linalg.vector_norm(own - everyone[nearest], dim=1)
        return torch.log(distance + _EPS).mean().neg()


def gram_loss(patches: Tensor, anchor: Tensor) -> Tensor:
    r"""Mean squared difference of the cosines between all patches of an image, seen by two networks.

    .. math:: \frac{1}{N P^2} \sum_n \lVert \hat X_n \hat X_n^\top - \hat A_n \hat A_n^\top \rVert_F^2

    with L2-normalised rows. It holds how similar patches are, and leaves free what turns all of them together.

    Args:
        patches: ``[N,P,D]``. Float16 and bfloat16 become float32.
        anchor: ``[N,P,E]``, those of the network that is held to; detached.

    Returns:
        Scalar in [0, 4].

    Raises:
        ValueError: The shapes do not fit.

    Source:
        Siméoni et al., "DINOv3", 2025, section 4.2; facebookresearch/dinov3 6876159.
    """
    patches, anchor = floats("gram_loss", "[N,P,D] [N,P,E]", patches=patches, anchor=anchor)
    with torch.autocast(patches.device.type, enabled=False):
        own, held = F.normalize(patches, dim=2), F.normalize(anchor.detach(), dim=2)
        return (own @ own.transpose(1, 2) - held @ held.transpose(1, 2)).square().mean()
