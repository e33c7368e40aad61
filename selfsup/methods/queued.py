"""What methods with a queue of keys, or with BatchNorm by groups, look at before they are built."""

from __future__ import annotations

from selfsup.errors import UserError
from selfsup.methods.parts import Parts


def check_queue(size: int, step: int, what: str = "images") -> None:
    """Look whether a queue holds what one step puts in.

    Args:
        size: Keys that the queue holds, ``method.queue_size``.
        step: Keys of a step over all ranks.
        what: Their name.

    Raises:
        UserError: It is smaller.
    """
    if size < step:
        raise UserError(
            f"method.queue_size={size} is smaller than the {step} {what} of a step; raise it or lower batch_size."
        )


def groups_of_a_rank(bn_groups: int, parts: Parts) -> int:
    """Return in how many groups each rank's BatchNorm sees its images, where all ranks have ``bn_groups``.

    Raises:
        UserError: A group has fewer than two images.
    """
    groups = max(1, bn_groups // parts.world_size)
    if parts.batch_size // parts.world_size < 2 * groups:
        raise UserError(
            f"method.bn_groups={bn_groups} leaves fewer than two images to a group; lower it or raise batch_size."
        )
    return groups
