"""Is this machine fit? Versions, optional parts with the one-line fix, devices, disk, write permission."""

import importlib
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from edgetrain.environment import memory_gib, processor

REQUIRED = {  # module: distribution
    "torch": "torch",
    "lightning": "lightning",
    "hydra": "hydra-core",
    "transformers": "transformers",
    "datasets": "datasets",
    "torchaudio": "torchaudio",
    "soundfile": "soundfile",
    "flwr": "flwr",
    "timm": "timm",
    "torchvision": "torchvision",
    "peft": "peft",
    "matplotlib": "matplotlib",
    "optuna": "optuna",
    "ortools": "ortools",
}
OPTIONAL = {  # module: (distribution, extra)
    "executorch": ("executorch", "deploy"),
    "torchao": ("torchao", "deploy"),
    "onnx": ("onnx", "deploy"),
    "onnxscript": ("onnxscript", "deploy"),
    "onnxruntime": ("onnxruntime", "deploy"),
    "gguf": ("gguf", "deploy"),
    "lm_eval": ("lm-eval", "eval"),
    "submitit": ("submitit", "slurm"),
    "ray": ("ray", "ray"),
    "wandb": ("wandb", "trackers"),
    "mlflow": ("mlflow", "trackers"),
    "pytest": ("pytest", "dev"),
}
ENOUGH_DISK_GIB = 2.0


def examine() -> int:
    """Print one line a part; returns 0, or 1 when something that every run needs is missing."""
    failures = 0
    for module, distribution in REQUIRED.items():
        problem = import_problem(module)
        failures += problem is not None
        say(problem is None, distribution, problem or metadata.version(distribution))
    for module, (distribution, extra) in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            print(f'  -   {distribution:14} not installed; pip install -c constraints.txt -e ".[{extra}]"')
        else:
            problem = import_problem(module)
            say(problem is None, distribution, problem or metadata.version(distribution))
    failures += not devices()
    failures += not folders()
    print("fit" if not failures else f"not fit: {failures} problem{'s' if failures > 1 else ''} above")
    return 1 if failures else 0


def say(good: bool, what: str, detail: str) -> None:
    print(f"  {'ok ' if good else 'NO '} {what:14} {detail}")


def import_problem(module: str) -> str | None:
    """None when the module loads, else why not and what to do, in one line."""
    try:
        importlib.import_module(module)
        return None
    except ImportError as error:
        return f"does not load: {first_line(error)}; pip install -c constraints.txt -e ."
    except OSError as error:  # a compiled part misses a library: torch and its companions from different builds
        return f"does not load: {first_line(error)}; install it and torch together, under constraints.txt"


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def devices() -> bool:
    """Processor, memory and GPUs; also whether bfloat16 is multiplied natively."""
    try:
        import torch
    except (ImportError, OSError):
        return True  # counted above
    from edgetrain.jobs.fit import fastest_precision

    say(True, "processor", f"{processor()}, {os.cpu_count()} cores, {memory_gib()} GiB of memory")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    say(True, "gpu", ", ".join(names) or "none; runs use the processor")
    say(True, "precision", f"trainer.precision=auto means {fastest_precision()} here")
    return True


def folders() -> bool:
    """Free space and write permission where runs and caches go."""
    good = True
    cache = Path(os.environ.get("EDGETRAIN_CACHE") or Path.home() / ".cache" / "edgetrain")
    for what, path in (("runs", Path.cwd()), ("cache", cache)):
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 2**30
        try:
            with tempfile.NamedTemporaryFile(dir=existing):
                writable = True
        except OSError:
            writable = False
        fine = writable and free >= ENOUGH_DISK_GIB
        good = good and fine
        fix = (
            ""
            if fine
            else "; free some space, or work in another folder"
            if writable
            else "; not writable, use another"
        )
        say(fine, what, f"{path}: {free:.1f} GiB free{fix}")
    return good
