"""The configuration: a typed tree of dataclasses, composed by Hydra from YAML and the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore

from selfsup.augment.config import AugmentConfig
from selfsup.checkpoint import INFO, find_checkpoint, is_checkpoint, read_tensors
from selfsup.data import DataConfig
from selfsup.errors import UserError
from selfsup.eval.config import EvalConfig, eval_config
from selfsup.methods import MethodConfig
from selfsup.negatives import NegativesConfig
from selfsup.nn import BackboneConfig, idle_settings
from selfsup.objectives import ObjectiveConfig
from selfsup.optimization import OptimizerConfig
from selfsup.registry import REGISTRIES
from selfsup.settings import Section, key_of, setting
from selfsup.settings.catalog import is_choice
from selfsup.settings.checkpoints import MODULE, TIMM
from selfsup.settings.composing import compose_choices
from selfsup.settings.early import known
from selfsup.settings.meanings import no_setting
from selfsup.settings.moved import renamed
from selfsup.settings.overrides import Change, Schema, read_change
from selfsup.settings.values import read_yaml, write_yaml


@dataclass
class TrainerConfig(Section):
    """How long and on what the training runs; Lightning does it.

    Attributes:
        max_epochs: Passes over the training images.
        accelerator, devices, num_nodes: As Lightning's ``Trainer`` takes them.
        precision: ``32-true``, ``bf16-mixed``, ``16-mixed``, ``bf16-true`` or ``64-true``, as Lightning's. With
            ``bf16-true`` a weight has 8 bits, which rounds small steps away, a momentum encoder's first.
        strategy: As Lightning's ``Trainer`` takes it. A device holds the whole network with ``auto`` and ``ddp``, with
            ``fsdp`` a part of each weight, gradient and optimiser state, by torch's ``fully_shard`` and not Lightning's
            own FSDP (docs/clusters.md says what it does not go with).
        sync_batchnorm: Share BatchNorm statistics over ranks; None: yes on several GPUs, unless the method needs
            statistics per rank (MoCo).
        batchnorm_ranks: Share them among so many neighbouring ranks (8: 0 to 7, 8 to 15 and so on); 1 is each on its
            own, None among all.
        accumulate: Batches whose gradients add up to one step. Losses that compare images still see one batch at a
            time: a larger ``batch_size`` with ``chunk_size`` gives them more.
        chunk_size: Most images, views counted singly, that the backbone runs at a time on a rank, and that training
            holds activations of (GradCache); None is one pass. The gradient is that of the whole batch, for a third
            more arithmetic; BatchNorm layers of the backbone have statistics of each chunk.
        activation_checkpointing: Keep only the inputs of the backbone's blocks and compute the rest again in the
            backward pass. Changes no result.
        gradient_clip: Largest gradient norm; None does not clip.
        log_every_steps: Steps between two rows of ``metrics.csv``.
        checkpoint_every_epochs: Epochs between two checkpoints; the last epoch always leaves one.
        checkpoint_every_steps: Also write one every so many steps; None does not.
        keep_every_epochs: Keep a checkpoint of every so many epochs for good (``checkpoints/epoch-0010.ckpt``); None
            keeps the last one only.
        keep_best: Also keep the checkpoint of the epoch that was best by ``online/knn`` or ``health/rank``, as
            ``checkpoints/best.ckpt``; looked at as often as ``online.every_epochs`` says.
        progress: Show a bar of the whole run and a line an epoch; ``train.log`` has the lines in any case.
        deterministic: ``error`` takes torch's deterministic operations, which are slower, so that a run on the same
            kind of GPU with the same libraries repeats to the bit; one that has no such form ends the run. ``warn``
            goes on with that one, and names it. On a CPU a run repeats with ``off`` as well.
        compile: Compile backbone and heads with ``torch.compile`` when training starts. Values stay the same up to
            rounding. It takes from seconds to minutes, and pays on a GPU, and on a CPU for narrow networks.
    """

    section: ClassVar[str] = "trainer"

    max_epochs: int = setting(100, least=1)
    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = setting(1, least=1)
    strategy: str = "auto"
    precision: str = "32-true"
    sync_batchnorm: bool | None = None
    batchnorm_ranks: int | None = setting(None, least=1)
    accumulate: int = setting(1, least=1)
    chunk_size: int | None = setting(None, least=1)
    activation_checkpointing: bool = False
    gradient_clip: float | None = setting(None, least=0)
    log_every_steps: int = setting(10, least=1)
    checkpoint_every_epochs: int = setting(1, least=1)
    checkpoint_every_steps: int | None = setting(None, least=1)
    keep_every_epochs: int | None = setting(None, least=1)
    keep_best: str | None = None
    progress: bool = True
    deterministic: str = setting("off", choices=("off", "warn", "error"))
    compile: bool = False


@dataclass
class OnlineConfig(Section):
    """What is watched while training; it changes no weight.

    Attributes:
        every_epochs: Epochs between two looks; 0 is never. The last epoch is always looked at.
        bank, queries: Most training images, and most held-out images, that are encoded for it.
        k, temperature: Of the kNN accuracy (needs labels).
        stop_on_collapse: End a run, which is saved, when two looks in a row find features that no longer differ
            between images, or in one direction only.
    """

    section: ClassVar[str] = "online"

    every_epochs: int = setting(5, least=0)
    bank: int = setting(2000, least=1)
    queries: int = setting(1000, least=0)
    k: int = setting(20, least=1)
    temperature: float = setting(0.07, above=0)
    stop_on_collapse: bool = True

    def looks(self, epoch: int, last: int) -> bool:
        """Whether features are looked at after an epoch, counted from 1; ``last`` is the number of the last one."""
        return bool(self.every_epochs) and (epoch % self.every_epochs == 0 or epoch == last)


@dataclass
class LoggerConfig:
    """Where metrics go beside ``metrics.csv``.

    Attributes:
        tensorboard: Write TensorBoard files to the run folder (install the extra ``tensorboard``).
        wandb: Log to Weights & Biases (install the extra ``wandb``).
        wandb_project, wandb_mode: Its project, and ``online`` or ``offline``.
    """

    tensorboard: bool = False
    wandb: bool = False
    wandb_project: str = "selfsup"
    wandb_mode: str = "online"


@dataclass
class TrainConfig(Section):
    """Everything that ``selfsup train`` needs.

    Attributes:
        batch_size: Images a step over all devices (not a device).
        seed: Of the weights, the order of the data and the views.
        run_dir: Folder of this run, which must not exist; None makes a new one under ``runs/``.
        resume: A run folder or a checkpoint to go on from. ``auto`` starts ``run_dir``, or goes on there.
    """

    method: MethodConfig = field(default_factory=MethodConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    batch_size: int = setting(256, least=1)
    seed: int = setting(0, least=0, below=2**32)
    run_dir: str | None = None
    resume: str | None = None

    @property
    def scheme(self) -> str:
        """The method, with what was put in the place of its own: ``simclr``, ``simclr+dcl``, ``moco+mochi+dcl``."""
        return "+".join(part.name for part in (self.method, self.negatives, self.objective) if part.name != "none")


@dataclass
class EvaluateConfig(Section):
    """Everything that ``selfsup probe``, ``knn`` and ``evaluate`` need.

    Attributes:
        checkpoint: A run folder, a checkpoint, ``timm:NAME``, ``module:FILE.py:NAME`` or ``module:PACKAGE.NAME`` (code
            that returns a network), a file of weights for the network of ``backbone`` (keys as timm's or torchvision's
            ResNets), ``untrained`` (the network of ``backbone``, random weights) or ``raw_pixels`` (no network).
        pretrained: Of ``timm:NAME``: its published weights; false draws random ones.
        run_dir: Folder that receives ``results.json`` and figures; None is the checkpoint's own run.
        seed: Of the probe, and of the weights of ``untrained``.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
    """

    checkpoint: str = "???"
    pretrained: bool = True
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=eval_config)
    run_dir: str | None = None
    seed: int = 0
    accelerator: str = "auto"


#: Begins the comments of a run's ``config.yaml`` on what a resumed run had before; see ``selfsup.engine.run_folder``.
UNTIL = "# Until step "

_SCHEMAS: dict[str, type[Any]] = {"train": TrainConfig, "evaluate": EvaluateConfig}

_store = ConfigStore.instance()
for _name, _schema in _SCHEMAS.items():
    _store.store(name=f"{_name}_schema", node=_schema)
for _group, _node in {"backbone": BackboneConfig, "augment": AugmentConfig, "optimizer": OptimizerConfig}.items():
    _store.store(group=_group, name="base", node=_node)


def load_config(overrides: Sequence[str] = (), *, file: str | Path | None = None, kind: str = "train") -> Any:
    """Compose a configuration.

    Args:
        overrides: What differs from the defaults, as on the command line: ``["method=moco", "trainer.max_epochs=20"]``.
            Text behind ``=`` is taken as it stands, see :func:`selfsup.settings.values.from_text`.
        file: A run's ``config.yaml`` to start from in place of the defaults; then ``overrides`` set values and
            choose no groups.
        kind: ``train`` gives a :class:`TrainConfig`, ``evaluate`` an :class:`EvaluateConfig`.

    Raises:
        UserError: An unknown key or choice (the nearest right one is named), a wrong type, a value out of its range,
            an unreadable file.
    """
    words = renamed([overrides] if isinstance(overrides, str) else overrides)
    if file is not None:
        return from_values(_read_saved(Path(file).expanduser()), words)
    groups = [word for word in words if is_choice(word, kind)]
    changes = [_read_change(word) for word in words if word not in groups]
    return build(kind, start_network(compose_choices(groups, kind), changes, groups), changes)


def from_values(values: dict[str, Any], overrides: Sequence[str] = (), *, kind: str = "train") -> Any:
    """Build a configuration from the values of a finished one, such as those kept in a checkpoint.

    Args:
        values: What a run's ``config.yaml`` holds, or a part of it.
        overrides: Single values that differ.
        kind: As :func:`load_config`.

    Raises:
        UserError: A key or a value that does not fit, or an override that chooses a group.
    """
    overrides = renamed(overrides)
    for word in overrides:
        if is_choice(word, kind):
            group = word.partition("=")[0]
            raise UserError(
                f"{word}: the {group} is that of the configuration it starts from; change single settings of it."
            )
    values = _as_then(values)
    changes = [_read_change(word) for word in overrides]
    return build(kind, start_network(values, changes), changes)


def _as_then(values: dict[str, Any]) -> dict[str, Any]:
    """Return values that an earlier version may have saved, with what was so before there was a choice.

    Parts were drawn by position, and of encoded images, which have a ``source_size``, the central square was read. The
    blur was cut to a tenth of a view's side, and LARS was timm's.
    """
    sections = {name: section for name, section in values.items() if isinstance(section, dict)}
    if data := sections.get("data"):
        cut = {"max_aspect": 1.0} if "source_size" in data else {}
        values = {**values, "data": {"membership": "position", **cut, **data}}
    whole = {"seed", "trainer", "augment", "optimizer"} <= values.keys()
    if not whole or "batchnorm_ranks" in sections.get("trainer", {}):
        return values  # written by hand, or saved since
    views, moves = sections.get("augment", {}), sections.get("optimizer", {})
    if views.get("operations") is None or "blur" in views["operations"]:
        values = {**values, "augment": {**views, "override": {"blur_kernel": 0.1, **(views.get("override") or {})}}}
    if moves.get("name") == "lars":
        adapts = bool(moves.get("weight_decay", 1.0))
        kwargs = {"norms_apart": True, "eps": 1e-8, "adapt": adapts, **(moves.get("kwargs") or {})}
        values = {**values, "optimizer": {**moves, "kwargs": kwargs}}
    return values


def build(kind: str, values: dict[str, Any], changes: Iterable[Change] = ()) -> Any:
    """Make plain dataclasses of values and check them; no code beyond sees a ``DictConfig``.

    Raises:
        UserError: As :func:`load_config`.
    """
    schema, changes = schema_of(kind, values), list(changes)
    composed = schema.build(values, changes)
    keys = {change.key for change in changes}
    trained = {f"backbone.{key_of(name)}" for name in BackboneConfig.of_training}
    if kind == "evaluate" and (wrong := sorted(key for key in keys if key in trained)):
        raise UserError(f"{wrong[0]} is for training; what it names is evaluated with checkpoint=.")
    asked = {key.removeprefix("backbone.").partition(".")[0] for key in keys if key.startswith("backbone.")}
    asked -= {"name", *(key_of(name) for name in BackboneConfig.of_training)}
    idle: list[str] = []
    with contextlib.suppress(TypeError, ValueError, AssertionError, RuntimeError):  # building it says what is wrong
        idle = [f"backbone.{name}" for name in sorted(asked & idle_settings(composed.backbone))] if asked else []
    if idle:
        warnings.warn(
            f"{' and '.join(idle)} do{'es' * (len(idle) == 1)} nothing for the network '{composed.backbone.name}'.",
            stacklevel=3,
        )
    if kind == "train" and composed.objective.name != "none":
        own = [key for key in composed.method.of_loss if f"method.{key}" in keys]
        for key in own:
            warnings.warn(
                f"method.{key} does nothing with objective={composed.objective.name}, which has settings of its own "
                "(objective.…).",
                stacklevel=3,
            )
    for group, registry in REGISTRIES.items():
        if not hasattr(composed, group):
            continue
        name = getattr(composed, group).name
        if name == "???":
            raise UserError(f"{group} is not chosen; write {group}=NAME.")
        if registry[name].config is not schema.sections[group]:
            raise UserError(f"{group}.name={name} does not change the {group}; choose it by {group}={name}.")
    if kind == "evaluate" and composed.checkpoint == "???":
        raise UserError("checkpoint is not set; write checkpoint=RUN.")
    return composed


def start_network(values: dict[str, Any], changes: Sequence[Change], groups: Sequence[str] = ()) -> dict[str, Any]:
    """Return values with the network that ``backbone.from`` names, unless ``backbone`` or ``backbone.name`` is written.

    Args:
        values: Of the configuration.
        changes: Of these values.
        groups: Choices of groups that were written out.

    Raises:
        UserError: It names no network, such as a file of weights, or there is no such thing.
    """
    said = [change.value for change in changes if change.key == "backbone.from"]
    chosen = any(word.startswith("backbone=") for word in groups)
    if not said or said[-1] in (None, "null") or chosen or any(c.key == "backbone.name" for c in changes):
        return values
    name = str(said[-1])
    network: dict[str, Any] = {}
    if name.startswith(TIMM):
        import timm

        known = name.removeprefix(TIMM)
        network = {"name": known, "small_stem": False} if timm.is_model(known) else {}
    elif not name.startswith(MODULE):
        file = find_checkpoint(name)
        content = read_tensors(file)
        if is_checkpoint(content, file):
            network = content[INFO]["config"]["backbone"]
    if not network:
        raise UserError(
            f"backbone.from={name} does not say which network its weights are of; say it with backbone=… or "
            "backbone.name=…."
        )
    own = BackboneConfig.of_training
    kept = {key: value for key, value in values.get("backbone", {}).items() if key in own and key != "from_"}
    return {**values, "backbone": {key: value for key, value in network.items() if key not in own} | kept}


def schema_of(kind: str, values: dict[str, Any]) -> Schema:
    """Return the settings that the chosen method and source have.

    Raises:
        UserError: They are not registered.
    """
    root = _SCHEMAS[kind]
    # the defaults know more than their types: every protocol that is registered now has its settings among them
    defaults = {f.name: f.default_factory() for f in dataclasses.fields(root) if callable(f.default_factory)}
    sections = {name: type(value) for name, value in defaults.items()}
    for group, registry in REGISTRIES.items():
        chosen = values.get(group)
        if isinstance(chosen, dict):
            sections[group] = registry[str(chosen.get("name"))].config
    return Schema(root, sections)


def _read_change(word: str) -> Change:
    if "=" not in word and not word.startswith("~"):
        raise UserError(no_setting([word], known()))
    return read_change(word)


def to_yaml(config: Any) -> str:
    """Return a configuration dataclass as YAML, which ``load_config(file=…)`` reads back as it was."""
    return write_yaml(
        dataclasses.asdict(config, dict_factory=lambda items: {key_of(name): value for name, value in items})
    )


def _read_saved(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, dict) or "method" not in values or "data" not in values:
        raise UserError(f"{path} is not the configuration of a run: it names no method and no data.")
    before = [line.removeprefix("# ") for line in path.read_text("utf-8").splitlines() if line.startswith(UNTIL)]
    if before:
        warnings.warn(
            f"{path} alone does not repeat its run, whose settings changed while it trained. {'; '.join(before)}.",
            stacklevel=3,
        )
    return values
