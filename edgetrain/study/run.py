"""The story of a study: its runs, then one table, the figures and the claims, in a run folder of its own."""

import time

import yaml

from edgetrain.environment import describe, now
from edgetrain.folder import RunFolder, write_atomic
from edgetrain.run import report
from edgetrain.study.children import run_children
from edgetrain.study.plan import Study
from edgetrain.study.result import summarise


def run_study(study: Study, folder: RunFolder) -> list[str]:
    """Carry out or go on with a study; returns a sentence for each run that could not be finished.

    Raises Interrupted; resume= goes on from there.
    """
    started = time.monotonic()
    environment = folder.read_json("environment.json")
    if environment:
        environment["resumed"] = [*environment.get("resumed", []), describe()]
    else:
        environment = describe()
        saved = yaml.safe_dump(study.config.to_dict(), sort_keys=False, allow_unicode=True)
        folder.write_json("study.json", {"arguments": study.arguments, "smoke": study.smoke})
        write_atomic(folder.path / "config.yaml", saved)
    folder.write_json("environment.json", environment)

    failures = run_children(study, folder)
    if not failures:
        environment["finished"] = now()
    environment["wall_seconds"] = round(environment.get("wall_seconds", 0.0) + time.monotonic() - started, 1)
    folder.write_json("environment.json", environment)
    summarise(study.config, folder)
    report(study.config, folder)
    return failures
