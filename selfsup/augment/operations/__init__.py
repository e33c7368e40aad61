"""What may happen to a view after its crop: one file an operation; each registers itself, and this folder is walked.

Images are float ``[B,C,H,W]`` in [0, 1] of any channels; factors are float ``[B]`` on the same device. Values
equal torchvision's functions of the same name, which clamp after every operation.
"""

from selfsup.registry import import_files

import_files(__name__, __path__)
