"""The command line: python -m edgetrain [verb] key=value ...

Imports nothing heavy: --help, list, show and new answer in under half a second; a verb imports what it needs.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from edgetrain.errors import Interrupted, UserError, listing, nearest
from edgetrain.processes import has_to_speak, is_first, under_torchrun
from edgetrain.signals import sigterm_raises

HELP = """\
EdgeTrain: train, evaluate, export and report models that end up on a device.

  python -m edgetrain [verb] key=value ...        the verb is run when there is none

verbs
  run       recipe=NAME [group=option] [key=value] [out=DIR] [--smoke]
            variant=NAME seed=K                   one of a recipe's variants; variant=[a,b] seeds=[0,1] is a study:
                                                  a run of each, side by side in one report (parallel=2 at a time)
            resume=RUN [key=value]                go on from a run's last checkpoint, or with a study's other runs
  sweep     recipe=NAME 'key=choice(a,b)' 'key=tag(log,interval(1e-4,1e-2))' [key=value] [out=DIR] [--smoke]
                                                  the values with the lowest test loss, as a recipe that runs
            ['seed=range(3)'] [trials=20] [parallel=1] [timeout=MINUTES] [pruner=median] [retrain=3]
            [metric=test/loss] [direction=minimize|maximize] [storage=URL] [name=STUDY]
            resume=SWEEP [trials=N]               go on; trials that ended stay
  eval      run=RUN [key=value]                   judge a trained model on held-out data
            tasks=[boolq,...] [num_fewshot=N] [limit=N] [batch_size=8] [exit_layer=E] [include_path=DIR]
                                                  or on tasks of lm-evaluation-harness; mobilellm_zero_shot: the paper's
            arithmetic=int8|q7                    or in the whole numbers that export=[c] computes
            artefact=DIR [form=int8] [key=value]  an exported folder in its own runtime, anywhere
  generate  run=RUN prompt=TEXT [tokens=128] [temperature=0] [exit_layer=E] [draft=D|auto] [seed=0]
            [weights=int8] [draft_weights=int8] [compiled=true]
  measure   run=RUN [measure=[exits,...]]         measure again, into the run's report
  cost      model=timm model.name=NAME input=[1,3,224,224] [hardware=[cortex_m7,bitfusion,nvdla]] [out=DIR]
            recipe=NAME hardware=[...] [key=value]
                                                  a model layer by layer on every device, untrained; a device is an
                                                  option or a YAML file of your own: hardware=[my_board.yaml]
            table=FILE [network=NAME]             a table of layers: .csv, .json, or .m of MAESTRO and XRBench
            run=RUN hardware=[...]                what a run trained, into the run's report
  export    run=RUN export=[executorch,onnx]      write deployable artefacts and judge each in its own runtime
  report    run=RUN [baseline=RUN]                draw report.html again
            compare=[RUN,RUN] [out=DIR]           what differs between runs: configuration, machine, metrics
  bench     [NAME] [key=value] [out=DIR]          measure side by side; alone it lists the benches
  list      [PATTERN]                             recipes, each in one sentence
  show      recipe=NAME [key=value]               the full configuration, checked
            recipe=NAME preview=true              its data: samples, counts, lengths, duplicates
  new       NAME from=RECIPE                      copy a recipe to edit
  doctor                                          is this machine fit, and the fix where it is not

examples
  python -m edgetrain recipe=layerskip_llama
  python -m edgetrain recipe=layerskip_llama model.dim=192 method.layerskip.p_max=0.2
  python -m edgetrain recipe=layerskip_llama data=text data.path=my_texts/ --smoke
  python -m edgetrain generate run=outputs/layerskip_llama/RUN prompt='def main' exit_layer=2 draft=4

A RUN is a run folder. Recipes are found in the package, in ./recipes, in $EDGETRAIN_RECIPES, or by path.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 when something was found unfit or did not finish, 2 for bad input,
    130 when interrupted, 143 when terminated."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own classes, as `python -m` has it
    name = arguments.pop(0) if "=" not in arguments[0] and not arguments[0].startswith("-") else "run"
    try:
        if name not in VERBS:
            raise UserError(f"there is no verb '{name}'{nearest(name, VERBS)}; verbs: {listing(VERBS)}")
        with sigterm_raises():
            return VERBS[name](arguments) or 0
    except UserError as error:
        if has_to_speak():
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if is_first():
            print("interrupted", file=sys.stderr)
        return 130
    except Interrupted as error:
        if is_first():
            print(error, file=sys.stderr)
        return error.code
    except BrokenPipeError:  # `| head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def run_verb(arguments: list[str]) -> int:
    smoke, overrides = take_flag(arguments, "--smoke")
    resume = take_value(overrides, "resume")
    if resume and os.path.isfile(Path(resume, "sweep.json")):  # False, where Path raises, for a name too long
        return sweep_verb(arguments)
    study, config, folder = resumed(resume, overrides) if resume else planned(overrides, smoke)
    if study and under_torchrun():
        raise UserError("a study starts the processes of its runs itself; start it without torchrun")

    def work() -> list[str]:
        if study:
            from edgetrain.study.run import run_study

            return run_study(study, folder)
        from edgetrain.run import run

        run(config, folder)
        return []

    return carried_out(work, folder)


def carried_out(work: Callable[[], list[str]], folder) -> int:  # noqa: ANN001 - as for read_run
    """Work that fills a folder and names what failed; returns the exit code. Says how to go on where it did not end."""
    try:
        with folder.locked():
            failures = work()
    except (Interrupted, KeyboardInterrupt) as error:
        if not is_first():
            return 0  # all stopped together, and the first says so
        if not (folder.path / "config.yaml").is_file():
            raise  # there is nothing to resume yet
        stopped = error if isinstance(error, Interrupted) else Interrupted()
        print(f"{stopped}; resume with: python -m edgetrain resume={shown_path(folder.path)}", file=sys.stderr)
        return stopped.code
    if not is_first():
        return 0
    print_metrics(folder.read_json("metrics.json", {}))
    print(f"run folder  {shown_path(folder.path)}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        print(f"try them again with: python -m edgetrain resume={shown_path(folder.path)}", file=sys.stderr)
    return 1 if failures else 0


def sweep_verb(arguments: list[str]) -> int:
    from edgetrain.sweep.plan import plan_sweep
    from edgetrain.sweep.run import resumed_sweep, run_sweep

    smoke, overrides = take_flag(arguments, "--smoke")
    resume = take_value(overrides, "resume")
    if under_torchrun():
        raise UserError("a sweep starts the processes of its runs itself; start it without torchrun")
    if resume:
        sweep, folder = resumed_sweep(resume, overrides)
    else:
        sweep = plan_sweep(overrides, smoke)
        from edgetrain.folder import RunFolder
        from edgetrain.sweep.ledger import check_storage

        check_storage(sweep)
        folder = RunFolder.create(Path(sweep.config.recipe).stem, sweep.config.out)
    code = carried_out(lambda: run_sweep(sweep, folder), folder)
    return code or int(not folder.read_json("metrics.json", {}).get("trials_complete"))


def planned(overrides: list[str], smoke: bool):  # noqa: ANN201 - as for read_run
    """A new study or None, its or the run's config, and the folder that it will fill."""
    from edgetrain.folder import RunFolder
    from edgetrain.study.plan import Study, plan

    made = plan(overrides, smoke)
    study = made if isinstance(made, Study) else None
    config = study.config if study else made
    return study, config, RunFolder.create(Path(config.recipe).stem, config.out)


def resumed(path: str, overrides: list[str]):  # noqa: ANN201
    """The same for resume=RUN."""
    from edgetrain.folder import RunFolder

    if RunFolder.open(path).is_study:
        from edgetrain.study.resume import resumed_study

        study, folder = resumed_study(path, overrides)
        return study, study.config, folder
    from edgetrain.resume import resumed_config

    return None, *resumed_config(path, overrides)


def eval_verb(arguments: list[str]) -> None:
    artefact = take_value(arguments, "artefact")
    if artefact is not None:
        eval_artefact(artefact, arguments)
        return
    tasks = take_value(arguments, "tasks")
    names = ("num_fewshot", "limit", "batch_size", "exit_layer", "include_path") if tasks is not None else ()
    options = {name: take_value(arguments, name) for name in names}
    arithmetic = take_value(arguments, "arithmetic")
    trained, folder = open_run(arguments)
    if arithmetic is not None:
        from edgetrain.evaluation.arithmetic import evaluate_in

        print_metrics(evaluate_in(trained, arithmetic))
        return
    if tasks is not None:
        from edgetrain.evaluation.benchmarks import benchmark
        from edgetrain.run import report

        print_metrics(benchmark(trained, folder, tasks, **options))
        report(trained.config, folder)
        return
    trained.data.setup("test")
    held_out = trained.task.evaluate(trained.model, trained.data.test_dataloader())
    print_metrics({f"test/{name}": value for name, value in held_out.items()})


def eval_artefact(path: str, arguments: list[str]) -> None:
    """Judge an exported folder again, and say where its manifest has other figures."""
    from edgetrain.compose import compose
    from edgetrain.export.again import judge_again
    from edgetrain.export.manifest import read_manifest

    form = take_value(arguments, "form")
    manifest = read_manifest(Path(path))
    metrics = judge_again(Path(path), manifest, compose(arguments, base=manifest["config"]), form)
    print_metrics(metrics)
    for name, value in metrics.items():
        said = manifest["forms"][name.partition("/")[0]]["metrics"].get(name.partition("/")[2])
        if said is not None and abs(said - value) > 1e-4 * max(1.0, abs(said)):
            print(f"manifest.json says {name}  {said:.4g}", file=sys.stderr)


def generate_verb(arguments: list[str]) -> None:
    names = ("prompt", "tokens", "temperature", "exit_layer", "draft", "seed", "weights", "draft_weights", "compiled")
    options = {name: take_value(arguments, name) for name in names}
    from edgetrain.decoding.terminal import stream

    trained, _ = open_run(arguments)
    stream(trained, **options)


def measure_verb(arguments: list[str]) -> None:
    trained, folder = open_run(arguments)
    from edgetrain.run import measure, report

    measure(trained, folder)
    report(trained.config, folder)


def cost_verb(arguments: list[str]) -> None:
    from edgetrain.hardware.terminal import print_costs
    from edgetrain.run import cost, report, run

    if any(argument.startswith("run=") for argument in arguments):
        trained, folder = open_run(arguments)
        if not trained.config.hardware:
            raise UserError("nothing to cost it on; name devices, as in hardware=[cortex_m7,bitfusion,nvdla]")
        cost(trained, folder)
        report(trained.config, folder)
    else:
        from edgetrain.compose import compose
        from edgetrain.folder import RunFolder

        smoke, arguments = take_flag(arguments, "--smoke")
        values = [(name, take_value(arguments, name)) for name in ("input", "tokens", "table", "network")]
        recipe = f"recipe={take_value(arguments, 'recipe') or 'cost'}"
        job = compose([recipe]).job or {}
        trains = job.get("_target_") != "edgetrain.jobs.cost.CostJob"
        untrained = ["job=cost", "measure=[]", "export=[]", "claims=[]"] if trains else []
        given = [f"job.{name}={value}" for name, value in values if value is not None]
        config = compose([recipe, *untrained, *arguments, *given], smoke)
        folder = RunFolder.create("cost", config.out)
        with folder.locked():
            run(config, folder)
    print_costs(folder)


def export_verb(arguments: list[str]) -> None:
    trained, folder = open_run(arguments)
    if not trained.config.export:
        raise UserError("nothing to export; say what to, as in export=[huggingface]")
    from edgetrain.run import export, report

    export(trained, folder)
    report(trained.config, folder)


def report_verb(arguments: list[str]) -> None:
    compared = take_value(arguments, "compare")
    if compared is not None:
        compare_runs(compared, arguments)
        return
    trust = [text for text in arguments if text.startswith("trust=")]
    config, folder = read_run(arguments)
    if folder.is_sweep:
        from edgetrain.sweep.run import redraw, resumed_sweep

        redraw(*resumed_sweep(str(folder.path), trust))
        return
    from edgetrain.run import report

    if folder.is_study:
        from edgetrain.study.result import summarise

        summarise(config, folder)
    report(config, folder)


def compare_runs(compared: str, arguments: list[str]) -> None:
    from edgetrain.report.compare import compare, print_comparison, write_comparison

    out = take_value(arguments, "out")
    if arguments:
        raise UserError(f"report compare=[...] takes only out=DIR besides, not {listing(arguments)}")
    comparison = compare(compared.strip("[] ").split(","))
    print_comparison(comparison)
    if out:
        print(f"report  {shown_path(write_comparison(comparison, Path(out)))}")


def bench_verb(arguments: list[str]) -> None:
    import textwrap

    from edgetrain.bench.catalogue import benches, checked

    if not arguments:
        for bench in benches().values():
            keys = [f"{key}={default}" for key, default in bench.keys.items() if key != "overrides"]
            more = ["[group=option]", "[group.key=value]"] if "overrides" in bench.keys else []
            print(f"{bench.name}  {bench.sentence}")
            print(textwrap.indent("\n".join(textwrap.wrap(" ".join([*keys, *more]), 100)), "    "))
        return
    name, *settings = arguments
    out = take_value(settings, "out")
    values = checked(name, settings)
    from edgetrain.bench.results import run_bench

    folder = run_bench(name, values, out)
    print(f"bench folder  {shown_path(folder.path)}")


def list_verb(arguments: list[str]) -> None:
    import fnmatch

    from edgetrain.recipes import all_recipes, header

    pattern = arguments[0] if arguments else "*"
    found = {name: path for name, path in all_recipes().items() if fnmatch.fnmatch(name, f"*{pattern}*")}
    if not found:
        raise UserError(f"no recipe matches '{pattern}'; there are: {listing(all_recipes())}")
    width = max(map(len, found))
    for name, path in sorted(found.items()):
        print(f"{name:{width}}  {header(path).sentence}")


def show_verb(arguments: list[str]) -> None:
    import yaml

    from edgetrain.study.plan import Study, plan

    smoke, overrides = take_flag(arguments, "--smoke")
    preview = take_value(overrides, "preview")
    if preview not in (None, "true", "false"):
        raise UserError(f"preview={preview}: expected true or false")
    made = plan(overrides, smoke)
    config = made.config if isinstance(made, Study) else made
    if preview == "true":
        preview_data(config)
        return
    if isinstance(made, Study):
        print(made.outline())
    print(yaml.dump(config.to_dict(), Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True), end="")


def preview_data(config) -> None:  # noqa: ANN001 - as for read_run
    """Print what a run would train on."""
    from edgetrain.recipes import provenance

    origin = provenance(config.recipe, config.data or {})
    from edgetrain.data.preview import preview_of, print_preview

    print_preview(preview_of(config), origin)


def new_verb(arguments: list[str]) -> None:
    from edgetrain.recipes import copy_recipe

    source = take_value(arguments, "from") or "layerskip_llama"
    if len(arguments) != 1:
        raise UserError("new takes the new recipe's name, as in: new my_recipe from=layerskip_llama")
    path = copy_recipe(source, arguments[0])
    print(f"{path}\nrun it with: python -m edgetrain recipe={path.stem}")


def doctor_verb(arguments: list[str]) -> int:
    from edgetrain.doctor import examine

    return examine()


VERBS: dict[str, Callable[[list[str]], int | None]] = {
    "run": run_verb,
    "sweep": sweep_verb,
    "eval": eval_verb,
    "generate": generate_verb,
    "measure": measure_verb,
    "cost": cost_verb,
    "export": export_verb,
    "report": report_verb,
    "bench": bench_verb,
    "list": list_verb,
    "show": show_verb,
    "new": new_verb,
    "doctor": doctor_verb,
}


def read_run(arguments: list[str]):  # noqa: ANN201 - the types live in modules that are imported late
    """Config and folder of run=RUN with the other arguments on top."""
    from edgetrain.build import read_config
    from edgetrain.compose import compose
    from edgetrain.folder import RunFolder

    path = take_value(arguments, "run")
    if not path:
        raise UserError("say which run: run=<run folder>")
    folder = RunFolder.open(path)
    return compose(arguments, base=read_config(folder)), folder


def open_run(arguments: list[str]):  # noqa: ANN201
    """What run=RUN trained, ready to use, and its folder."""
    config, folder = read_run(arguments)
    if folder.is_study:
        raise UserError(f"run={shown_path(folder.path)} is a study; name one of its runs: run=<study>/runs/<name>")
    if folder.is_search:
        best = folder.path / folder.read_json("metrics.json", {}).get("best/run", "runs/<network>")
        raise UserError(f"run={shown_path(folder.path)} is a search; name one of its networks: run={shown_path(best)}")
    from edgetrain.build import load_trained

    return load_trained(folder, config), folder


def print_metrics(metrics: dict[str, float | int | str]) -> None:
    """One line each; nested facts are in metrics.json."""
    width = max((len(name) for name in metrics), default=0)
    for name, value in metrics.items():
        if not isinstance(value, dict):
            print(f"{name:{width}}  {value:.4g}" if isinstance(value, float) else f"{name:{width}}  {value}")


def take_flag(arguments: list[str], flag: str) -> tuple[bool, list[str]]:
    rest = [argument for argument in arguments if argument != flag]
    return len(rest) < len(arguments), rest


def take_value(arguments: list[str], name: str) -> str | None:
    """Remove `name=value` from the arguments and return the value, None when it is not there."""
    for argument in arguments:
        if argument.startswith(f"{name}="):
            arguments.remove(argument)
            return argument.partition("=")[2]
    return None


def shown_path(path: Path) -> str:
    """Relative to here where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
