"""Logistic regression: the exact minimum for every strength of the penalty, many problems at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfsup.bars import progress_bar

HISTORY = 10  # pairs that the approximation of the Hessian remembers
ARMIJO = 1e-4
HALVINGS = 25
NUMBERS = 2**26  # float32 numbers that weights with their history, or a block of logits, may take: 256 MB


@torch.no_grad()
def fit_logistic(
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    c: Sequence[float],
    iterations: int = 1000,
    tolerance: float = 1e-6,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Fit multinomial logistic regressions in the same matrix products, one for each ``c`` or each problem.

    L-BFGS (Liu and Nocedal 1989) with backtracking; every problem has its own step and its own curvature pairs, so that
    each is solved as it would be alone. The bias is not penalised. Problems are taken together as far as weights and
    history fit a bounded workspace; logits are computed in blocks of rows.

    Args:
        inputs: float ``[N,D]``, shared by all, or ``[G,N,D]``, one set a problem.
        targets: int64 ``[N]`` or ``[G,N]``, 0 to ``classes - 1``.
        classes: ``C``.
        c: ``G`` inverse strengths of the penalty.
        iterations: Most iterations.
        tolerance: A problem is done when no entry of the gradient of the mean loss exceeds it, or when no step lowers
            the loss any more, the limit of the precision.
        progress: Show a progress bar.

    Returns:
        Weights ``[G,D,C]`` and biases ``[G,C]``.
    """
    width = inputs.shape[-1]
    size = (width + 1) * classes
    together = max(1, NUMBERS // (size * (2 * HISTORY + 4)))
    strengths = torch.as_tensor(list(c), dtype=inputs.dtype, device=inputs.device)
    solved = []
    with progress_bar(total=len(strengths), desc="logistic regression", unit="problem", disable=not progress) as bar:
        for begin in range(0, len(strengths), together):
            own = slice(begin, begin + together)
            part = _minimise(
                inputs[own] if inputs.ndim == 3 else inputs,
                targets[own] if targets.ndim == 2 else targets,
                classes,
                strengths[own],
                iterations,
                tolerance,
            )
            solved.append(part)
            bar.update(len(part))
    weight = torch.cat(solved)
    return weight[:, :-1], weight[:, -1]


def _minimise(inputs: Tensor, targets: Tensor, classes: int, c: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Return ``[G,D+1,C]``; the last row is the bias."""
    heads = len(c)
    x = inputs.new_zeros(heads, (inputs.shape[-1] + 1) * classes)
    penalty = 1 / (c * inputs.shape[-2])  # of the mean loss
    loss, gradient = _loss_and_gradient(inputs, targets, classes, penalty, x)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    slack = 16 * torch.finfo(x.dtype).eps
    active = gradient.abs().amax(1) > tolerance
    for _ in range(iterations):
        if not active.any():
            break
        direction = -_inverse_hessian_times(gradient, pairs)
        slope = (direction * gradient).sum(1)
        # rounding can turn a direction uphill; the gradient itself never is
        uphill = slope >= 0
        direction = torch.where(uphill[:, None], -gradient, direction)
        slope = torch.where(uphill, -(gradient * gradient).sum(1), slope)
        step = active.to(x.dtype)
        if not pairs:  # the scale of the problem is not known yet
            step = step / gradient.norm(dim=1).clamp_min(1)
        waiting = active.clone()
        for _ in range(HALVINGS):
            moved = x + step[:, None] * direction
            new_loss, new_gradient = _loss_and_gradient(inputs, targets, classes, penalty, moved)
            # Close to the minimum the change of the loss is lost in rounding, and the slope decides in its place
            # (approximate Wolfe condition, Hager and Zhang 2005)
            new_slope = (direction * new_gradient).sum(1)
            level = (new_loss <= loss + slack * loss.abs()) & (new_slope <= (2 * ARMIJO - 1) * slope)
            waiting &= ~((new_loss <= loss + ARMIJO * step * slope) | level)
            if not waiting.any():
                break
            step = torch.where(waiting, step / 2, step)
        active &= ~waiting
        keep = active[:, None]
        change = torch.where(keep, moved - x, torch.zeros_like(x))
        turn = torch.where(keep, new_gradient - gradient, torch.zeros_like(x))
        curvature = (change * turn).sum(1)
        # a pair without curvature is left out of that problem's sum by a weight of 0
        useful = curvature > torch.finfo(x.dtype).eps * (turn * turn).sum(1)
        pairs = [*pairs, (change, turn, torch.where(useful, 1 / curvature, torch.zeros_like(curvature)))][-HISTORY:]
        x = torch.where(keep, moved, x)
        gradient = torch.where(keep, new_gradient, gradient)
        loss = torch.where(active, new_loss, loss)
        active &= gradient.abs().amax(1) > tolerance
    return x.view(heads, -1, classes)


def _inverse_hessian_times(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the two-loop recursion of L-BFGS: ``[G,P]`` to ``[G,P]``, each row with its own pairs."""
    result = gradient.clone()
    shares = []
    for change, turn, inverse in reversed(pairs):
        share = inverse * (change * result).sum(1)
        result -= share[:, None] * turn
        shares.append(share)
    if pairs:
        scale = torch.ones_like(gradient[:, 0])
        for _, turn, inverse in pairs:  # the latest useful pair gives the scale
            scale = torch.where(inverse > 0, 1 / (inverse * (turn * turn).sum(1)).clamp_min(1e-30), scale)
        result *= scale[:, None]
    for (change, turn, inverse), share in zip(pairs, reversed(shares), strict=True):
        result += (share - inverse * (turn * result).sum(1))[:, None] * change
    return result


def _loss_and_gradient(
    inputs: Tensor, targets: Tensor, classes: int, penalty: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean cross-entropy plus ``½ penalty ‖weight‖²`` of each problem, ``[G]``, and its gradient, ``[G,P]``."""
    heads, rows = len(x), inputs.shape[-2]
    weight = x.view(heads, -1, classes)
    gradient = torch.zeros_like(weight)
    gradient[:, :-1] = penalty[:, None, None] * weight[:, :-1]
    loss = 0.5 * penalty * weight[:, :-1].square().sum((1, 2))
    for block in torch.split(torch.arange(rows, device=x.device), max(1, NUMBERS // (heads * classes))):
        part, truth = inputs[..., block, :], targets[..., block].expand(heads, -1).unsqueeze(2)
        logits = part @ weight[:, :-1] + weight[:, -1:]
        normaliser = logits.logsumexp(2, keepdim=True)
        loss = loss + (normaliser - logits.gather(2, truth)).sum((1, 2)) / rows
        error = (logits - normaliser).exp_()
        error.scatter_add_(2, truth, torch.full_like(error[:, :, :1], -1))
        gradient[:, :-1] += part.transpose(-1, -2) @ error / rows
        gradient[:, -1] += error.sum(1) / rows
    return loss, gradient.flatten(1)
