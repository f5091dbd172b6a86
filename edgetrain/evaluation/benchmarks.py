"""`eval run=... tasks=[boolq,...]`: public benchmarks through EleutherAI's lm-evaluation-harness (extra `eval`).

Prompts, scoring, metrics and standard errors are the harness's; its tasks load their data from the Hugging Face hub.
"""

import logging
from importlib import metadata
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError

from edgetrain.decoding.terminal import number
from edgetrain.errors import UserError, nearest
from edgetrain.folder import Row, RunFolder

# MobileLLM (Liu et al. 2024, arXiv 2402.14905), section 2 and Table 3: zero-shot common-sense reasoning.
ALIASES = {
    "mobilellm_zero_shot": (
        *("arc_easy", "arc_challenge", "boolq", "piqa"),
        *("social_iqa", "hellaswag", "openbookqa", "winogrande"),
    )
}
OPTIONS = ("num_fewshot", "limit", "batch_size", "exit_layer", "include_path")
BOOTSTRAPS = 1000  # of the standard error of metrics that have no formula


def benchmark(trained: Any, folder: RunFolder, tasks: str, **options: str | None) -> dict[str, float]:
    """Judge a trained model on tasks of the harness; into metrics.json and the table `eval`, which later calls extend.

    tasks: as typed, names or patterns, or an alias above. options, as typed: num_fewshot (the task's own by default),
    limit (samples a task, or below 1 their share), batch_size (default 8), exit_layer (leave after that layer),
    include_path (a folder with YAML tasks of one's own). eval/<task>/<metric>, with _stderr; with an exit layer,
    eval/exit_<k>/<task>/<metric>. Raises UserError for an unknown task, a value that is not what it should be, data
    without a tokenizer or that cannot be loaded, and without the extra.
    """
    if not hasattr(trained.data, "tokenizer"):
        raise UserError(
            f"eval tasks= asks a language model, and this run's data ({type(trained.data).__name__}) has no tokenizer; "
            "leave tasks= out to judge the run on its own held-out data"
        )
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from edgetrain.evaluation.harness import HarnessModel
    except ModuleNotFoundError as error:
        raise UserError(
            f"eval tasks= needs lm-evaluation-harness ({error}); install it with: "
            'pip install -c constraints.txt -e ".[eval]"'
        ) from error
    exit_layer = number(options, "exit_layer", int)
    batch_size = number(options, "batch_size", int, 8)
    limit, shots = number(options, "limit", float), number(options, "num_fewshot", int)
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and limit.is_integer())):
        raise UserError(f"limit={limit:g} is neither a number of samples nor a share between 0 and 1")
    if shots is not None and shots < 0:
        raise UserError(f"num_fewshot={shots} must be at least 0")
    own = options.get("include_path")
    if own is not None and not Path(own).is_dir():
        raise UserError(f"include_path={own} is not a folder; give one that holds YAML tasks")
    model = HarnessModel(trained.model, trained.data.tokenizer, exit_layer, batch_size)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    typed = typed_names(tasks)
    manager = TaskManager(include_path=own, include_defaults=False)
    if not set(typed) <= set(manager.all_subtasks):  # to read all that the harness has takes seconds
        manager = TaskManager(include_path=own)
    names = chosen_tasks(typed, manager)
    try:
        results = simple_evaluate(
            model=model,
            tasks=names,
            num_fewshot=shots,
            limit=limit if limit is None or limit < 1 else int(limit),
            bootstrap_iters=BOOTSTRAPS,
            log_samples=False,
            task_manager=manager,
        )
    except (OSError, ValueError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"tasks={tasks} cannot be loaded or run ({reason}); most tasks load their data from the Hugging Face hub, "
            "your own from include_path=FOLDER"
        ) from error
    rows = result_rows(results, exit_layer)
    report(folder, rows, f"lm-evaluation-harness {metadata.version('lm-eval')}")
    metrics = metrics_of(rows)
    folder.update_metrics(metrics)
    return metrics


def typed_names(tasks: str) -> list[str]:
    """Raises UserError when there is none."""
    names = [name.strip() for name in tasks.strip("[] ").split(",") if name.strip()]
    if not names:
        raise UserError("tasks= is empty; name some, as in tasks=[boolq,piqa]")
    return names


def chosen_tasks(typed: list[str], manager: Any) -> list[str]:
    """Names of tasks, groups and tags, each once. Raises UserError for one that the harness does not have."""
    chosen = []
    for name in typed:
        found = ALIASES.get(name) or manager.match_tasks([name])
        if not found:
            known = [*manager.all_tasks, *ALIASES]
            raise UserError(
                f"tasks: the harness has no '{name}'{nearest(name, known)}; it has {len(known)}, listed by "
                "`python -m lm_eval ls tasks`, and yours are found with include_path=FOLDER"
            )
        chosen += found
    return list(dict.fromkeys(chosen))


def result_rows(results: dict[str, Any], exit_layer: int | None) -> list[Row]:
    """task, exit, metric, value, stderr, shots and samples, a row a metric."""
    rows = []
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{filtered}")
            rows.append(
                {
                    "task": task,
                    "exit": "last" if exit_layer is None else str(exit_layer),
                    "metric": metric if filtered == "none" else f"{metric}_{filtered}",
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else "",
                    "shots": results["n-shot"].get(task, ""),
                    "samples": results["n-samples"].get(task, {}).get("effective", ""),
                }
            )
    return rows


def metrics_of(rows: list[Row]) -> dict[str, float]:
    metrics = {}
    for row in rows:
        exit_part = "" if row["exit"] == "last" else f"exit_{row['exit']}/"
        name = f"eval/{exit_part}{row['task']}/{row['metric']}"
        metrics[name] = row["value"]
        if row["stderr"] != "":
            metrics[f"{name}_stderr"] = row["stderr"]
    return metrics


def report(folder: RunFolder, rows: list[Row], version: str) -> None:
    """The table `eval`: what is there stays, what was judged again is replaced."""
    there = folder.read_table("eval") if (folder.path / "tables" / "eval.csv").is_file() else []
    merged = {(row["task"], row["exit"], row["metric"]): row for row in [*there, *rows]}
    caption = f"{version}. shots: examples in the prompt; stderr: the harness's standard error over the samples."
    folder.add_table("eval", list(merged.values()), "Benchmarks", caption)
