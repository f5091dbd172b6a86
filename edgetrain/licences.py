"""Under which licences stands what a run learned from: its data, and the weights that it began with."""

from contextlib import suppress

from edgetrain.build import find_source, read_config
from edgetrain.config import Config, Node
from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.recipes import provenance


def licences(config: Config) -> list[Row]:
    """Rows of what, name, source, licence; None for what nobody said.

    A run that began with another run's weights inherits what that one learned from.
    """
    chain = [origin("data", config.data, config.recipe)] if config.data else []
    model = origin("model", config.model, config.recipe) if config.model else {}
    if model.get("licence"):  # pretrained weights; a network that is built from nothing has none
        chain.append(model)
    for name, method in config.method.items():
        if method.get("teacher"):
            chain += inherited(f"teacher of {name}", str(method["teacher"]))
    if config.init_from:
        chain += inherited("initial weights", config.init_from)
    return chain


def origin(what: str, node: Node, recipe: str) -> Row:
    """What the node says itself under `origin`, else what its option file says in the comment on top."""
    name = str(node.get("path") or node.get("name") or node["_target_"].rpartition(".")[2])
    said = node.get("origin") or {}
    if not said:
        lines: list[str] = []
        with suppress(UserError):  # the recipe of a run from elsewhere
            lines = provenance(recipe, node, what)
        said = {
            key.lower(): line.partition(":")[2].strip()
            for line in lines
            for key in ("Source", "Licence")
            if line.startswith(f"{key}:")
        }
    return {"what": what, "name": name, "source": said.get("source"), "licence": said.get("licence")}


def inherited(what: str, source: str) -> list[Row]:
    """The chain of the run that the weights are from; one row without a licence when they are from elsewhere."""
    with suppress(UserError):
        folder = RunFolder.open(find_source(source))
        raw = read_config(folder)
        known = {key: raw[key] for key in ("recipe", "data", "model", "method", "init_from") if raw.get(key)}
        return [row | {"what": f"{row['what']} of {what}"} for row in licences(Config(**known))]
    return [{"what": what, "name": source, "source": None, "licence": None}]
