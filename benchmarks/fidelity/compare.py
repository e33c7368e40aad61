"""Compare losses, gradients and optimiser steps with those of the authors' own code, in float64.

None of that code is here: clone the repositories side by side into one folder, each under its own name, and say where:

    python benchmarks/fidelity/compare.py FOLDER            # all that can be imported
    python benchmarks/fidelity/compare.py FOLDER moco swav  # some

What their modules import and these comparisons do not use (apex, mmcv) is stood in for by empty modules, and
``.cuda()`` does nothing. Prints a Markdown table: the largest difference of the loss and of a gradient or a step, as a
fraction of the largest value that is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import selfsup.functional as ours
from selfsup.lars import Lars
from selfsup.nn import FeatureQueue, MomentumEncoder, PixelPropagation

Found = list[tuple[str, float]]
COMPARISONS: dict[str, tuple[str, Callable[[Path], Found]]] = {}


def comparison(repository: str) -> Callable[[Callable[[Path], Found]], Callable[[Path], Found]]:
    """Register a comparison with a repository; the function's name is the method's."""

    def add(function: Callable[[Path], Found]) -> Callable[[Path], Found]:
        COMPARISONS[function.__name__] = (repository, function)
        return function

    return add


class Anything(types.ModuleType):
    """A module with whatever it is asked for: nothing of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def code(folder: Path, *stand_ins: str) -> Iterator[None]:
    """Let modules of a folder be imported, and forget them afterwards."""
    before = dict(sys.modules)
    for name in stand_ins:
        sys.modules[name] = Anything(name)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            del sys.modules[name]
        sys.modules.update(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).abs().max() / theirs.abs().max())


def both(mine: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> Found:
    """Return how far two losses of the same inputs, and their gradients, are apart."""
    values, gradients = [], []
    for function in (mine, theirs):
        leaves = [value.clone().requires_grad_() for value in inputs]
        loss = function(*leaves)
        gradients.append(torch.autograd.grad(loss, leaves))
        values.append(loss.detach())
    gradient = max(apart(a, b) for a, b in zip(*gradients, strict=True))
    return [("loss", apart(*values)), ("gradient", gradient)]


def stepped(mine: Callable[[list[nn.Parameter]], Any], theirs: Callable[[list[nn.Parameter]], Any]) -> float:
    """Return how far the weights of two optimisers are apart after three steps at different rates."""
    ends = []
    for build in (mine, theirs):
        parameters = [
            nn.Parameter(random(6, 4, seed=1)),
            nn.Parameter(random(3, 2, 3, 3, seed=2)),
            nn.Parameter(random(5)),
        ]
        optimizer = build(parameters)
        for step, rate in enumerate((0.5, 2.0, 0.8)):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for number, parameter in enumerate(parameters):
                parameter.grad = random(*parameter.shape, seed=10 * step + number + 3)
            optimizer.step()
        ends.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    return apart(*ends)


def exempt(decay: float, **settings: Any) -> Callable[[list[nn.Parameter]], Lars]:
    """Return what builds our LARS, without decay and adaptation of what has one dimension."""

    def build(parameters: list[nn.Parameter]) -> Lars:
        wide = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay}
        return Lars([wide, {"params": [p for p in parameters if p.ndim == 1], "adapt": False}], lr=1.0, **settings)

    return build


class Toy(nn.Module):
    """A network small enough to run twice, with the ``fc`` that the authors' builders replace."""

    def __init__(self, num_classes: int = 8, **_: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(10, 12)
        self.fc = nn.Linear(12, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).tanh())


@comparison("moco")
def moco(folder: Path) -> Found:
    """Three steps of MoCo v2 with SGD: loss, queue and both encoders."""
    with code(folder):
        builder = importlib.import_module("moco.builder")
    theirs = builder.MoCo(Toy, dim=8, K=24, m=0.9, T=0.2, mlp=True)
    encoder = Toy()
    encoder.fc = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 8))
    encoder.load_state_dict(theirs.encoder_q.state_dict())
    keys, queue = MomentumEncoder(encoder), FeatureQueue(24, 8)
    queue.keys.copy_(theirs.queue.T)
    optimizers = [
        torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.3, momentum=0.9, weight_decay=1e-4)
        for network in (encoder, theirs)
    ]
    losses = []
    for step in range(3):
        first, second = random(6, 10, seed=step), random(6, 10, seed=step + 50)
        if step:  # the authors' encoder of keys follows before a step, ours after the one before: the same sequence
            keys.update(encoder, 0.9)
        with torch.no_grad():
            key = F.normalize(keys(second), dim=1)
        mine = ours.info_nce(encoder(first), key, queue.negatives(), 0.2)
        queue.enqueue(key)
        other = F.cross_entropy(*theirs(first, second))
        for loss, optimizer in zip((mine, other), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(apart(mine.detach(), other.detach()))
    weights = [torch.cat([p.detach().flatten() for p in n.parameters()]) for n in (encoder, theirs.encoder_q)]
    return [
        ("loss of 3 steps", max(losses)),
        ("weights after 3 steps", apart(*weights)),
        ("queue", apart(queue.keys, theirs.queue.T)),
    ]


@comparison("moco-v3")
def moco_v3(folder: Path) -> Found:
    """Their contrastive loss, and their LARS."""
    with code(folder):
        builder = importlib.import_module("moco.builder")
        lars = importlib.import_module("moco.optimizer").LARS
    theirs = builder.MoCo(Toy, T=0.2)
    key = random(6, 8, seed=1)
    found = both(  # the method multiplies by 2τ, as their loss does
        lambda q: 2 * 0.2 * ours.cross_view_nce(q, key, 0.2),
        lambda q: theirs.contrastive_loss(q, key),
        random(6, 8),
    )
    step = stepped(exempt(1e-6), lambda p: lars(p, 1.0, weight_decay=1e-6))
    return [*found, ("3 steps of LARS", step)]


@comparison("simsiam")
def simsiam(folder: Path) -> Found:
    """Their builder's outputs go into the loss of their script, one line of it."""
    with code(folder):
        builder = importlib.import_module("simsiam.builder")
    model = builder.SimSiam(Toy, dim=8, pred_dim=4)
    criterion = nn.CosineSimilarity(dim=1)

    def theirs(x1: Tensor, x2: Tensor) -> Tensor:
        p1, p2, z1, z2 = model(x1, x2)
        return -(criterion(p1, z2).mean() + criterion(p2, z1).mean()) * 0.5

    def mine(x1: Tensor, x2: Tensor) -> Tensor:
        z1, z2 = model.encoder(x1), model.encoder(x2)
        p1, p2 = model.predictor(z1), model.predictor(z2)
        return (ours.negative_cosine(p1, z2.detach()) + ours.negative_cosine(p2, z1.detach())) / 2

    return both(mine, theirs, random(6, 10), random(6, 10, seed=1))


@comparison("barlowtwins")
def barlow_twins(folder: Path) -> Found:
    """Their forward pass after the projector, and their LARS."""
    with code(folder):
        module = importlib.import_module("main")
    model = module.BarlowTwins.__new__(module.BarlowTwins)
    nn.Module.__init__(model)
    model.args = argparse.Namespace(batch_size=12, lambd=0.0051)
    model.backbone, model.projector, model.bn = nn.Identity(), nn.Identity(), nn.BatchNorm1d(8, affine=False)
    found = both(ours.barlow_twins_loss, model, random(12, 8), random(12, 8, seed=1))
    filters = {"weight_decay_filter": True, "lars_adaptation_filter": True}
    step = stepped(exempt(1e-6), lambda p: module.LARS(p, 1.0, weight_decay=1e-6, **filters))
    return [*found, ("3 steps of LARS", step)]


@comparison("vicreg")
def vicreg(folder: Path) -> Found:
    """Their forward pass after the projector, and their LARS."""
    with code(folder):
        module = importlib.import_module("main_vicreg")
    model = module.VICReg.__new__(module.VICReg)
    nn.Module.__init__(model)
    model.args = argparse.Namespace(batch_size=12, sim_coeff=25.0, std_coeff=25.0, cov_coeff=1.0)
    model.backbone, model.projector, model.num_features = nn.Identity(), nn.Identity(), 8
    found = both(ours.vicreg_loss, model, 0.3 * random(12, 8), 0.3 * random(12, 8, seed=1))
    filters = dict.fromkeys(("weight_decay_filter", "lars_adaptation_filter"), module.exclude_bias_and_norm)
    return [
        *found,
        ("3 steps of LARS", stepped(exempt(1e-6), lambda p: module.LARS(p, 1.0, weight_decay=1e-6, **filters))),
    ]


@comparison("swav")
def swav(folder: Path) -> Found:
    """Their ``distributed_sinkhorn``; the loss is a line of their script."""
    with code(folder, "apex", "apex.parallel", "apex.parallel.LARC", "cv2"):
        module = importlib.import_module("main_swav")
    module.args = argparse.Namespace(epsilon=0.05, world_size=1, sinkhorn_iterations=3)
    scores = F.normalize(random(20, 6), dim=1) @ F.normalize(random(6, 9, seed=1), dim=0)
    codes = apart(ours.sinkhorn(scores), module.distributed_sinkhorn(scores.clone()))

    def mine(*views: Tensor) -> Tensor:
        return ours.swapped_prediction(views, [ours.sinkhorn(view.detach()) for view in views[:2]], 0.1)

    def theirs(*views: Tensor) -> Tensor:
        loss = torch.zeros(())
        for number in (0, 1):
            q = module.distributed_sinkhorn(views[number].detach().clone())
            rest = [v for v in range(len(views)) if v != number]
            loss = loss - sum((q * F.log_softmax(views[v] / 0.1, dim=1)).sum(1).mean() for v in rest) / len(rest)
        return loss / 2

    return [("codes", codes), *both(mine, theirs, *(0.3 * random(10, 9, seed=n) for n in range(4)))]


@comparison("apex")
def larc(folder: Path) -> Found:
    """Apex's LARC, which SwAV and SimSiam's linear probe use."""
    with code(folder / "apex" / "parallel"):
        wrapper = importlib.import_module("LARC").LARC
    found = []
    for decay in (0.0, 1e-6, 0.1):

        def theirs(parameters: list[nn.Parameter], decay: float = decay) -> Any:
            return wrapper(torch.optim.SGD(parameters, 1.0, 0.9, weight_decay=decay), 0.001, clip=False)

        def mine(parameters: list[nn.Parameter], decay: float = decay) -> Lars:
            return Lars(parameters, lr=1.0, weight_decay=decay, norms_apart=True, eps=1e-8)

        found.append((f"3 steps, decay {decay:g}", stepped(mine, theirs)))
    return found


@comparison("self-supervised")
def wmse(folder: Path) -> Found:
    """Their whitening, and the loss of two views whitened apart."""
    with code(folder / "methods"):
        whitening = importlib.import_module("whitening").Whitening2d(4, track_running_stats=False)
        loss = importlib.import_module("norm_mse").norm_mse_loss
    x = random(12, 4)
    return [
        ("whitened", apart(ours.whiten(x), whitening(x))),
        *both(
            lambda a, b: ours.whitening_mse(torch.stack([a, b]), 12),
            lambda a, b: loss(whitening(a), whitening(b)),
            random(12, 4),
            random(12, 4, seed=1),
        ),
    ]


@comparison("self-supervised")
def byol(folder: Path) -> Found:
    """The loss of BYOL in W-MSE's repository: DeepMind's own needs JAX and Haiku."""
    with code(folder / "methods"):
        loss = importlib.import_module("norm_mse").norm_mse_loss
    target = random(12, 4, seed=1)
    return both(lambda p: 2 + 2 * ours.negative_cosine(p, target), lambda p: loss(p, target), random(12, 4))


@comparison("dino")
def dino(folder: Path) -> Found:
    """Their loss in two steps, the second with the centre that the first left."""
    with code(folder):
        module = importlib.import_module("main_dino")
    theirs = module.DINOLoss(7, 4, 0.04, 0.07, 3, 10)
    center, found = torch.zeros(1, 7), []
    for epoch, temperature in ((0, 0.04), (2, 0.07)):
        teacher = random(10, 7, seed=epoch)
        start = center

        def mine(*views: Tensor, teacher: Tensor = teacher, start: Tensor = start, t: float = temperature) -> Tensor:
            return ours.dino_loss(views, teacher.chunk(2), start, 0.1, t)

        def other(*views: Tensor, teacher: Tensor = teacher, epoch: int = epoch, start: Tensor = start) -> Tensor:
            theirs.center = start
            return theirs(torch.cat(views), teacher, epoch)

        found.append(both(mine, other, *(random(5, 7, seed=n + 20) for n in range(4))))
        center = 0.9 * center + 0.1 * teacher.mean(0, keepdim=True)
    return [
        *((name, max(a, found[1][i][1])) for i, (name, a) in enumerate(found[0])),
        ("centre", apart(center, theirs.center)),
    ]


@comparison("DenseCL")
def densecl(folder: Path) -> Found:
    """A step of their ``forward_train`` on maps; importing it takes the parts of their registry that it names."""
    heads = folder / "openselfsup" / "models" / "heads"
    with code(folder):
        package = types.ModuleType("openselfsup.models")
        package.__path__ = [str(folder / "openselfsup" / "models")]  # type: ignore[attr-defined]
        registry = Anything("openselfsup.models.registry")
        registry.MODELS = registry.HEADS = types.SimpleNamespace(register_module=lambda kind: kind)  # type: ignore[attr-defined]
        package.builder = None  # type: ignore[attr-defined]
        for name, module in {
            "openselfsup": Anything("openselfsup"),
            "openselfsup.utils": Anything("openselfsup.utils"),
            "openselfsup.models": package,
            "openselfsup.models.registry": registry,
            "openselfsup.models.builder": Anything("openselfsup.models.builder"),
            "openselfsup.models.heads": _package("openselfsup.models.heads", heads),
        }.items():
            sys.modules[name] = module
        kind = importlib.import_module("openselfsup.models.densecl").DenseCL
        head = importlib.import_module("openselfsup.models.heads.contrastive_head").ContrastiveHead(0.2)
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    model.head, model.loss_lambda, model.queue_len, model.momentum = head, 0.5, 24, 0.999
    for name in ("queue", "queue2"):
        model.register_buffer(name, F.normalize(random(8, 24, seed=len(name)), dim=0))
        model.register_buffer(f"{name}_ptr", torch.zeros(1, dtype=torch.long))

    class Map(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x[:, :5]]

    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(random(8, 5, seed=4))

        def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            grid = torch.einsum("oc,nchw->nohw", self.weight, maps[0]).flatten(2)
            return maps[0].mean((2, 3)) @ self.weight.T, grid, grid.mean(2)

    model.encoder_q, model.encoder_k = nn.Sequential(Map(), Neck()), nn.Sequential(Map(), Neck())
    key_image = random(6, 5, 3, 3, seed=9)
    queues = [model.queue.T.clone(), model.queue2.T.clone()]

    def theirs(image: Tensor) -> Tensor:
        return sum(model.forward_train(torch.stack([image, key_image], 1)).values())  # type: ignore[return-value]

    def mine(image: Tensor) -> Tensor:
        (q, grid, _), (k, key_grid, _) = (model.encoder_q[1]([x]) for x in (image, key_image))
        match = ours.dense_match(image, key_image)
        grids = [g.unflatten(2, (3, 3)) for g in (grid, key_grid.detach())]
        dense = ours.dense_info_nce(grids[0], grids[1], match, queues[1], 0.2)
        return 0.5 * ours.info_nce(q, k.detach(), queues[0], 0.2) + 0.5 * dense

    return both(mine, theirs, random(6, 5, 3, 3))


def _package(name: str, folder: Path) -> types.ModuleType:
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]  # type: ignore[attr-defined]
    return package


@comparison("PixPro")
def pixpro(folder: Path) -> Found:
    """Their loss of boxes of which one is flipped, their propagation module, and their LARS."""
    with code(folder):
        module = importlib.import_module("contrast.models.PixPro")
        lars = importlib.import_module("contrast.lars")
    boxes = [
        torch.tensor([[0.1, 0.0, 0.8, 0.7], [0.9, 0.2, 0.3, 0.9]]),
        torch.tensor([[0.3, 0.1, 1.0, 0.6], [0.2, 0.1, 0.7, 0.8]]),
    ]
    maps = [
        torch.stack([torch.tensor([[x1 - x0, 0, x0], [0, y1 - y0, y0]]) for x0, y0, x1, y1 in box.tolist()])
        for box in boxes
    ]
    target = F.normalize(random(2, 6, 5, 5, seed=1), dim=1)
    mask = ours.pixpro_mask(*maps, 5)
    found = both(
        lambda q: ours.pixpro_loss(F.normalize(q, dim=1), target, mask),
        lambda q: module.regression_loss(F.normalize(q, dim=1), target, *boxes, 0.7),
        random(2, 6, 5, 5),
    )
    mixing = PixelPropagation(6)
    model = module.PixPro.__new__(module.PixPro)
    nn.Module.__init__(model)
    model.value_transform, model.pixpro_clamp_value, model.pixpro_p = mixing.transform, 0.0, 2.0
    x = random(2, 6, 5, 5, seed=3)
    mixed = ("propagated", apart(mixing(x).detach(), model.featprop(x).detach()))

    def theirs(parameters: list[nn.Parameter]) -> Any:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 1e-5, "ignore": False},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0, "ignore": True},
        ]
        return lars.LARS(torch.optim.SGD(groups, 1.0, 0.9))

    return [*found, mixed, ("3 steps of LARS", stepped(exempt(1e-5, eps=1e-8), theirs))]


@comparison("SupContrast")
def supcon(folder: Path) -> Found:
    """Their loss."""
    with code(folder):
        loss = importlib.import_module("losses").SupConLoss(0.1, base_temperature=0.07)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    return both(
        lambda z: ours.supervised_contrastive(z.transpose(0, 1).flatten(0, 1), _same(labels), 0.1, 0.07),
        lambda z: loss(F.normalize(z, dim=2), labels),
        random(6, 2, 8),
    )


def _same(labels: Tensor) -> Tensor:
    twice = labels.repeat(2)
    return (twice[:, None] == twice) & ~torch.eye(len(twice), dtype=torch.bool)


@comparison("lightly")
def simclr(folder: Path) -> Found:
    """Lightly's NT-Xent: the authors' own is TensorFlow."""
    with code(folder):
        loss = importlib.import_module("lightly.loss.ntx_ent_loss").NTXentLoss(0.1)
    return both(lambda a, b: ours.nt_xent(a, b, 0.1), loss, random(6, 8), random(6, 8, seed=1))


def commit_of(folder: Path) -> str:
    answer = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() or "?"


def main() -> None:
    """Run the comparisons and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the authors' repositories are")
    parser.add_argument("methods", nargs="*", choices=[*COMPARISONS, []], help="some of them; all without")
    given = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=0, world_size=1)
        print("| method | code | commit | what | apart |\n|---|---|---|---|---|")
        for name in given.methods or COMPARISONS:
            repository, compare = COMPARISONS[name]
            folder = given.folder / repository
            if not folder.is_dir():
                print(f"| {name} | {repository} | | not there | |")
                continue
            try:
                found = compare(folder)
            except Exception as error:  # whatever others' code raises
                print(f"| {name} | {repository} | {commit_of(folder)} | failed: {type(error).__name__}: {error} | |")
                continue
            for what, value in found:
                print(f"| {name} | {repository} | {commit_of(folder)} | {what} | {value:.1e} |")
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
