"""From a checked config, or a run folder, to objects. Everything that builds, builds here; it imports no room.

The one order everywhere: build, `init_from`, plan or saved plan, apply, load_state_dict, optimiser.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import torch
import yaml
from torch import nn

from edgetrain.checkpoint import last_checkpoint, load_weights, model_weights, read_checkpoint, read_weights
from edgetrain.config import Config
from edgetrain.errors import UserError
from edgetrain.folder import RunFolder, write_atomic

Plans = dict[str, dict[str, Any]]


@dataclass
class Trained:
    """A built model with what trained it and what judges it. `plans`: what each method decided, by its name."""

    model: nn.Module
    task: Any
    data: Any
    config: Config
    plans: Plans


def factory(node: dict[str, Any]) -> Any:
    """The node's target with the node's arguments bound; call it with what only run time knows."""
    return hydra.utils.instantiate(node, _partial_=True, _convert_="all")


def build(node: dict[str, Any], **runtime: Any) -> Any:
    """An object from a config node `{_target_: ..., arguments}` and run-time arguments.

    Raises UserError when the target needs a package that is not installed.
    """
    try:
        return factory(node)(**runtime)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{node['_target_']} needs a package that is not installed ({str(error).splitlines()[0]}); "
            "`python -m edgetrain doctor` says how to install it"
        ) from error


def build_methods(config: Config) -> dict[str, Any]:
    """In list order. Raises UserError when one that changes the arithmetic does not stand last, or one that keeps
    weights by their names in the model does not stand before those that change the model at the end.
    """
    methods = {name: build(node) for name, node in config.method.items()}
    for name in list(methods)[:-1]:
        if getattr(methods[name], "changes_numerics", False):
            raise UserError(f"method.{name} changes the arithmetic, so it stands last: method=[..., {name}]")
    for name in list(methods)[1:]:
        if hasattr(methods[name], "judged_weights"):
            raise UserError(f"method.{name} keeps weights by their names, so it stands first: method=[{name}, ...]")
    return methods


def build_trained(config: Config, plans: Plans | None = None) -> Trained:
    """Data, model with its methods applied, and task. With `plans`, those decisions are used instead of new ones."""
    data = build(config.data)
    data.prepare_data()
    data.setup("fit")
    model = build(config.model)
    check_vocabulary(model, data)
    check_classes(model, data, config.model)
    check_shape(model, data)
    if config.init_from and plans is None:
        initialise(model, find_source(config.init_from))
    methods = build_methods(config)
    made: Plans = {}
    for name, method in methods.items():
        if plans is not None and name in plans:
            made[name] = plans[name]
        else:
            made[name] = method.plan(model, data) if hasattr(method, "plan") else {}
        if hasattr(method, "apply"):
            model = method.apply(model, made[name])
    optimizer = factory(config.optimizer) if config.optimizer else None
    task = build(config.task, model=model, methods=list(methods.values()), optimizer=optimizer)
    return Trained(model, task, data, config, made)


def initialise(model: nn.Module, source: str) -> None:
    """Copy the weights of a file or run; a backbone in a larger model may start from a classifier without its head."""
    weights = read_weights(source)
    backbone = getattr(model, "backbone", None)
    if backbone is None or any(key.startswith("backbone.") for key in weights):
        load_weights(model, weights, source)
    else:
        load_weights(backbone, {key: value for key, value in weights.items() if not key.startswith("head.")}, source)


def check_vocabulary(model: nn.Module, data: Any) -> None:
    """Raises UserError when a language model and its data have vocabularies of different sizes."""
    rows = getattr(model, "vocab_size", None) or getattr(getattr(model, "config", None), "vocab_size", None)
    tokens = getattr(data, "vocab_size", None)
    if rows is not None and tokens is not None and rows != tokens:
        raise UserError(
            f"the model's token table has {rows} rows but data.vocab_size={tokens}; set data.vocab_size={rows} for the"
            " model's own tokenizer, or build the model with model.vocab_size=${data.vocab_size}"
        )


def check_classes(model: nn.Module, data: Any, node: dict[str, Any]) -> None:
    """Raises UserError when a classifier and its data have not as many classes, or not the same where it names them.

    node: of the model, for the name of its key.
    """
    labels, own = getattr(data, "labels", None), getattr(model, "labels", None)
    if labels is None:
        return
    if own is not None and list(labels) != list(own):
        raise UserError(
            f"the model's labels are {', '.join(own)}, in that order, but data.labels are {', '.join(labels)}; choose "
            "data with the model's labels, or a model that is trained on these, as model=keyword"
        )
    classes = getattr(model, "num_classes", None)
    if classes is not None and classes != len(labels):
        key = "model.classes" if "classes" in node else "model.num_classes"
        raise UserError(
            f"{key} is {classes}, but data.num_classes={len(labels)}; set {key}={len(labels)}, "
            f"or {key}=${{data.num_classes}} in a recipe"
        )


def check_shape(model: nn.Module, data: Any) -> None:
    """Raises UserError when a model that says its input_shape and the items of its data have different ones."""
    takes = getattr(model, "input_shape", None)
    if takes is None or not hasattr(data, "samples"):
        return
    given = list(data.samples("train")[0][0].shape)
    if given != list(takes):
        mend = "make data.frames, data.stride_ms and data.coefficients and the model's agree"
        if 3 in (len(given), len(takes)):
            mend = (
                "choose a model for such inputs" if len(given) != len(takes) else "set model.input_shape to the data's"
            )
        elif len(given) != len(takes):
            mend = "data.features=samples is for a model with model.front_end=true, mfcc for others"
        raise UserError(f"the model takes inputs of {list(takes)}, but the data's are {given}; {mend}")


def load_trained(folder: RunFolder, config: Config) -> Trained:
    """What a run trained, from its last checkpoint, with every method finished; in eval mode."""
    path = last_checkpoint(folder)
    checkpoint = read_checkpoint(path)
    trained = build_trained(config, checkpoint.get("edgetrain", {}).get("plans"))
    load_weights(trained.model, model_weights(checkpoint), str(path))
    load_method_states(trained, checkpoint.get("edgetrain", {}).get("methods", {}))
    return finish(trained)


def method_states(trained: Trained) -> dict[str, dict[str, Any]]:
    """What methods keep over the steps beside their plans, by name: plain containers, for a checkpoint."""
    named = zip(trained.config.method, trained.task.methods, strict=True)
    return {name: method.state_dict() for name, method in named if hasattr(method, "state_dict")}


def load_method_states(trained: Trained, states: dict[str, dict[str, Any]]) -> None:
    for name, method in zip(trained.config.method, trained.task.methods, strict=True):
        if name in states:
            method.load_state_dict(states[name])


def finish(trained: Trained) -> Trained:
    """Let every method make the model what will be shipped (merge adapters, fold scales)."""
    for method in trained.task.methods:
        if hasattr(method, "finish"):
            trained.model = method.finish(trained.model, trained)
    trained.task.model = trained.model
    trained.task.eval()
    return trained


def seed_everything(seed: int) -> None:
    """Every generator that a run draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def write_config(config: dict[str, Any], folder: RunFolder) -> None:
    """config.yaml, from which the run is repeated."""
    write_atomic(folder.path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def read_config(folder: RunFolder) -> dict[str, Any]:
    """The saved config of a run as plain containers, neither checked nor trusted yet: `compose` does both."""
    path = folder.path / "config.yaml"
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} does not parse: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} does not hold a configuration; the file was damaged")
    return raw


def find_source(init_from: str) -> str:
    """`init_from` with recipe:NAME replaced by that recipe's newest finished run under outputs/."""
    if not init_from.startswith("recipe:"):
        return init_from
    name = init_from.removeprefix("recipe:")
    runs = [path for path in sorted(Path("outputs", name).glob("*")) if (path / "config.yaml").is_file()]
    finished = [path for path in runs if RunFolder(path).finished and not RunFolder(path).is_study]
    if not finished:
        raise UserError(
            f"{init_from}: no finished run of that recipe; make one with: python -m edgetrain recipe={name}"
        )
    return str(finished[-1])
