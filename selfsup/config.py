"""The configuration: a typed tree of dataclasses, composed by Hydra from YAML and the command line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from selfsup.augment.config import AugmentConfig
from selfsup.catalog import choices, other_names
from selfsup.data import DataConfig
from selfsup.errors import UserError
from selfsup.eval.config import EvalConfig
from selfsup.imports import hint
from selfsup.methods import MethodConfig
from selfsup.nn import BackboneConfig
from selfsup.optimization import OptimizerConfig
from selfsup.registry import find, methods, nearest, sources


@dataclass
class TrainerConfig:
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
        progress: Show a progress bar; it moves as often as a row is written.
        compile: Compile backbone and heads with ``torch.compile`` when training starts. Values stay the same up to
            rounding. It takes from seconds to minutes, and pays on a GPU, and on a CPU for narrow networks.
    """

    max_epochs: int = 100
    accelerator: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    sync_batchnorm: bool | None = None
    accumulate: int = 1
    chunk_size: int | None = None
    activation_checkpointing: bool = False
    gradient_clip: float | None = None
    log_every_steps: int = 10
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int | None = None
    progress: bool = True
    compile: bool = False


@dataclass
class OnlineConfig:
    """What is watched while training; it changes no weight.

    Attributes:
        every_epochs: Epochs between two looks; 0 is never. The last epoch is always looked at.
        bank, queries: Most training images, and most held-out images, that are encoded for it.
        k, temperature: Of the kNN accuracy (needs labels).
        stop_on_collapse: End a run whose features no longer differ between images.
    """

    every_epochs: int = 5
    bank: int = 2000
    queries: int = 1000
    k: int = 20
    temperature: float = 0.07
    stop_on_collapse: bool = True


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
class TrainConfig:
    """Everything that ``selfsup train`` needs.

    Attributes:
        batch_size: Images a step over all devices (not a device).
        seed: Of the weights, the order of the data and the views.
        run_dir: Folder of this run, which must not exist; None makes a new one under ``runs/``.
        resume: A run folder or a checkpoint to go on from.
    """

    method: MethodConfig = field(default_factory=MethodConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    batch_size: int = 256
    seed: int = 0
    run_dir: str | None = None
    resume: str | None = None


@dataclass
class EvaluateConfig:
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
    eval: EvalConfig = field(default_factory=EvalConfig)
    run_dir: str | None = None
    seed: int = 0
    accelerator: str = "auto"


_SCHEMAS: dict[str, type[Any]] = {"train": TrainConfig, "evaluate": EvaluateConfig}

_GROUPS = frozenset({"method", "backbone", "data", "augment", "optimizer", "trainer", "experiment"})

_store = ConfigStore.instance()
for _name, _schema in _SCHEMAS.items():
    _store.store(name=f"{_name}_schema", node=_schema)
for _group, _node in {"backbone": BackboneConfig, "augment": AugmentConfig, "optimizer": OptimizerConfig}.items():
    _store.store(group=_group, name="base", node=_node)


def load_config(overrides: Sequence[str] = (), *, file: str | Path | None = None, kind: str = "train") -> Any:
    """Compose a configuration.

    Args:
        overrides: What differs from the defaults, as on the command line: ``["method=moco", "trainer.max_epochs=20"]``.
        file: A run's ``config.yaml`` to start from in place of the defaults; then ``overrides`` set values and
            choose no groups.
        kind: ``train`` gives a :class:`TrainConfig`, ``evaluate`` an :class:`EvaluateConfig`.

    Raises:
        UserError: An unknown key or choice (the nearest right one is named), a wrong type, an unreadable file.
    """
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    if file is not None:
        return from_values(_read_yaml(Path(file)), overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("selfsup.configs", version_base="1.3"):
            return finish(compose(kind, overrides=open_dicts(name_choices(overrides), kind)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, kind)) from error


def from_values(values: dict[str, Any], overrides: Sequence[str] = (), *, kind: str = "train") -> Any:
    """Build a configuration from the values of a finished one, such as those kept in a checkpoint.

    Args:
        values: What a run's ``config.yaml`` holds, or a part of it.
        overrides: Single values that differ.
        kind: As :func:`load_config`.

    Raises:
        UserError: A key or a value that does not fit, or an override that chooses a group.
    """
    for override in overrides:
        key, given, _ = override.partition("=")
        if key in _GROUPS:
            raise UserError(f"{override}: the configuration it goes on from has chosen its {key}; set single values.")
        if not given:
            raise UserError(f"'{override}' is not a setting; write key=value.")
    schema = OmegaConf.structured(_SCHEMAS[kind])
    if "data" in values:
        # a configuration that was saved without this setting is of a time when parts were drawn by position
        values = {**values, "data": {"membership": "position", **values["data"]}}
    try:
        for group, registry in (("method", methods), ("data", sources)):
            if group in values:
                schema[group] = registry[str(values[group].get("name"))].config
        merged = OmegaConf.merge(schema, values, OmegaConf.from_dotlist(list(overrides)))
        return finish(cast(DictConfig, merged))
    except OmegaConfBaseException as error:
        raise UserError(explain(error, kind)) from error


def finish(config: DictConfig) -> Any:
    """Turn a composed configuration into plain dataclasses; no code beyond sees a ``DictConfig``."""
    composed = cast(Any, OmegaConf.to_object(config))
    for group, registry in (("method", methods), ("data", sources)):
        if hasattr(composed, group):
            value = getattr(composed, group)
            plain = registry[value.name].config
            # Hydra composes a subclass that also holds a defaults list; a method may build on another's settings
            if plain not in (type(value), *type(value).__bases__[:1]):
                raise UserError(
                    f"{group}.name={value.name} does not change the {group}; choose it by {group}={value.name}."
                )
            values = {f.name: getattr(value, f.name) for f in dataclasses.fields(plain)}
            setattr(composed, group, plain(**values))
    return composed


def to_yaml(config: Any) -> str:
    """Return a configuration dataclass as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def explain(error: Exception, kind: str) -> str:
    """Say in one sentence what is wrong with a configuration, naming the nearest right key or choice."""
    text = " ".join(str(error).split())
    cause = error.__cause__
    if found := re.search(r"hydra/(launcher|sweeper)/(\w+)", text):
        return (
            f"There is no hydra/{found.group(1)}={found.group(2)}: a package of its own brings it "
            "(submitit_slurm and submitit_local: pip install hydra-submitit-launcher)."
        )
    details = f"{text} {' '.join(str(cause).split())}" if cause is not None else text
    if isinstance(error, MissingConfigException) and (found := re.search(r"'(\w+)/([^']+)'", text)):
        group, choice = found.groups()
        return f"There is no {group}={choice}.{hint() or nearest(choice, choices(group))}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown is None and ("not in" in details):
        unknown = re.search(r"full_key: (\S+)", details)
    if unknown is not None:
        key = unknown.group(1)
        if key in _keys(kind):
            return f"'{key}' is no setting of the chosen {key.split('.')[0]}; selfsup methods and --help tell what is."
        return f"There is no setting '{key}'.{nearest(key, _keys(kind))}"
    if isinstance(error, OverrideParseException):
        return f"An override could not be read: {text}"
    if found := re.search(r"(Value .*?) full_key: (\S+)", details):
        return f"{found.group(2)}: {found.group(1)}"
    return text


def name_choices(overrides: Sequence[str]) -> list[str]:
    """Write the choices of groups as they are called: ``method=SimCLR`` becomes ``method=simclr``.

    Raises:
        UserError: A word that fits two choices.
    """
    named = []
    for override in overrides:
        key, given, value = override.partition("=")
        group = key.lstrip("+")
        if given and group in _GROUPS:
            words = [find(word, choices(group), other_names(group)) for word in value.split(",")]
            override = f"{key}={','.join(words)}"
        named.append(override)
    return named


def open_dicts(overrides: Sequence[str], kind: str = "train") -> list[str]:
    """Mark what goes into a free dictionary (``optimizer.kwargs.betas``), which Hydra takes only with ``++``."""
    free = [key for key, value in _walk(_SCHEMAS[kind]()) if isinstance(value, dict)]
    return [f"++{o}" if any(o.startswith((f"{key}=", f"{key}.")) for key in free) else o for o in overrides]


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        yield f"{prefix}{f.name}", value
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{f.name}.")


def _keys(kind: str) -> set[str]:
    keys = {key for key, _ in _walk(_SCHEMAS[kind]())} | {"experiment"}
    for group, registry in (("method", methods), ("data", sources)):
        for name in registry:
            keys |= {f"{group}.{f.name}" for f in dataclasses.fields(registry[name].config)}
    return keys


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise UserError(f"There is no configuration file {path}.") from error
    except Exception as error:  # OmegaConf raises what its YAML reader raises
        raise UserError(f"{path} cannot be read as a configuration: {error}") from error
    if not isinstance(values, dict) or "method" not in values or "data" not in values:
        raise UserError(f"{path} is not the configuration of a run: it names no method and no data.")
    return cast(dict[str, Any], values)
