"""Under which licences stands what a run learned from: its data, and the weights that it began with."""

import re
from contextlib import suppress
from pathlib import Path

from edgetrain.build import find_source, read_config
from edgetrain.config import Config, Node
from edgetrain.errors import UserError
from edgetrain.folder import Row, RunFolder
from edgetrain.recipes import find, load_yaml, options, provenance

WITH_WEIGHTS = re.compile(r"pretrained|keyword_int8|load_llama|transformers_model|from_pretrained")


def licences(config: Config) -> list[Row]:
    """Rows of what, name, source, licence; None for what nobody said.

    A run that began with another run's weights inherits what that one learned from.
    """
    chain = [origin("data", config.data, config.recipe)] if config.data else []
    if config.model and loads_weights(config.model):
        chain.append(origin("model", config.model, config.recipe))
    for name, method in config.method.items():
        if method.get("teacher"):
            chain += inherited(f"teacher of {name}", str(method["teacher"]))
    if config.init_from:
        chain += inherited("initial weights", config.init_from)
    return chain


def loads_weights(node: Node) -> bool:
    """Whether a model begins with weights that somebody trained; one that is built from nothing has no licence."""
    return bool(node.get("pretrained") or WITH_WEIGHTS.search(str(node["_target_"])))


def origin(what: str, node: Node, recipe: str) -> Row:
    """What the node says itself under `origin`, else what its option file says in the comment on top.

    Neither counts when the path is another than the option's: that is somebody else's data.
    """
    given = node.get("path") or node.get("folder") or node.get("name")
    said: Row = {}
    with suppress(UserError):  # the recipe of a run from elsewhere
        said = dict(node.get("origin") or {})
        for option in map(load_yaml, options(find(recipe)).get(what, {}).values()):
            if said and option.get("origin") == said and option.get("path") != node.get("path"):
                said = {}
                break
        else:
            said = said or commented(provenance(recipe, node, what))
    name = Path(str(given)).name if given else node["_target_"].rpartition(".")[2]
    return {"what": what, "name": name, "source": said.get("source"), "licence": said.get("licence")}


def commented(lines: list[str]) -> Row:
    """`Source:` and `Licence:` of a comment."""
    pairs = (line.partition(":") for line in lines)
    return {key.lower(): value.strip() for key, _, value in pairs if key in ("Source", "Licence")}


def inherited(what: str, source: str) -> list[Row]:
    """The chain of the run that the weights are from; one row without a licence when they are from elsewhere."""
    with suppress(UserError):
        folder = RunFolder.open(find_source(source))
        raw = read_config(folder)
        known = {key: raw[key] for key in ("recipe", "data", "model", "method", "init_from") if raw.get(key)}
        return [row | {"what": f"{row['what']} of {what}"} for row in licences(Config(**known))]
    return [{"what": what, "name": source, "source": None, "licence": None}]
