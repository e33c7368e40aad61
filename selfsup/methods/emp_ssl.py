"""EMP-SSL: very many small patches of each image agree with their mean, while patches of different images spread.

An image is cut into twenty to two hundred patches of a quarter of its area. All are drawn to the mean of the image's
embeddings, and for each patch number the embeddings of the batch fill as many directions as they can, by their coding
rate. The many patches replace many epochs. Tong et al., "EMP-SSL: Towards Self-Supervised Learning in One Training
Epoch", 2023.

Defaults are those of the authors' code and of the command in its README (tsb0601/EMP-SSL, bce1514 and 0b79c5a).

Deviations: the authors judge the mean over 128 patches of the head's first hidden layer. Here the backbone's feature of
the whole image is judged, as with every method, so that figures cannot be compared with theirs; the protocol
``bag_of_patches`` (``selfsup evaluate RUN --only bag_of_patches eval.bag_of_patches.layer=head``) judges such means.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import emp_ssl_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.nn import projection_head
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class EMPSSLConfig(MethodConfig):
    """EMP-SSL's settings, with the defaults of the authors' code.

    Attributes:
        similarity_weight: Of the cosine of each patch with the mean of its image; the coding rate has 1.
        eps: ε of the coding rate.
        hidden_dim: Width of the head's two hidden layers.
        output_dim: Width of the embedding.
    """

    name: str = "emp_ssl"
    similarity_weight: float = setting(200.0, least=0)
    eps: float = setting(0.2, above=0)
    hidden_dim: int = setting(4096, least=1)
    output_dim: int = setting(1024, least=1)


@methods.register("emp_ssl", EMPSSLConfig, optimizer="emp_ssl", augment="emp_ssl")
class EMPSSL(Method):
    """Draw many patches of an image to their mean while patches of different images spread (EMP-SSL)."""

    view_count = (2, None)
    couples_images = True

    def __init__(self, config: EMPSSLConfig, parts: Parts) -> None:
        super().__init__(parts)
        self.config = config
        hidden = [config.hidden_dim] * 2
        self.head = projection_head([self.backbone.dim, *hidden, config.output_dim], batch_norm=True)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return minus the coding rate and the weighted similarity."""
        embeddings = self.head(self.encode(views).flatten(0, 1)).unflatten(0, (len(views), -1))
        return StepOutput(emp_ssl_loss(embeddings, self.config.similarity_weight, self.config.eps, group=world()))
