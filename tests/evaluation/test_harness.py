"""Our models in lm-evaluation-harness against the harness's own class on the exported weights, offline."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (extra eval)")

import lm_eval
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from edgetrain.errors import UserError
from edgetrain.evaluation.benchmarks import ALIASES, benchmark, chosen_tasks
from edgetrain.evaluation.harness import HarnessModel
from edgetrain.folder import RunFolder

LINES = [f"def function_{index}_2(value):\n    return value + {index * 2}\n" for index in range(12)]


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one task of each kind, on a file of their own: choices, generation, whole texts."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": f"value + {index}", "choices": ["return", "value", " + 2"], "answer": index % 3, "text": line}
        for index, line in enumerate(LINES)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "fewshot_split": "test",
    }
    tasks = {
        "own_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}\n",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "own_generation": {
            "output_type": "generate_until",
            "doc_to_text": "def function",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match"}],
        },
        "own_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
        },
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **shared, **task}))
    return folder


@pytest.fixture(scope="module")
def peer(finished_run: RunFolder) -> HFLM:
    return HFLM(str(finished_run.path / "export" / "huggingface"), device="cpu", batch_size=3, dtype="float32")


@pytest.fixture
def ours(loaded: Any) -> HarnessModel:
    return HarnessModel(loaded.model, loaded.data.tokenizer, batch_size=3)


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


PAIRS = [
    ("def function", "_1_2(value):"),
    ("def function_3", "_1"),
    ("return value", " + 1"),
    ("return value ", "+ 1"),  # a space that moves to the continuation
    ("return value", " + 1\n"),  # the same context, a longer continuation
    ("", "def function"),  # nothing before it but the end of text
    ("".join(LINES[:6]), "def function_6"),  # cut on the left: the context is 32 tokens
    ("value + ", "7"),
    ("value + ", "8"),
]


def test_log_likelihoods_equal_the_harness_s_own(ours: HarnessModel, peer: HFLM) -> None:
    asked = requests("loglikelihood", PAIRS)
    for (score, greedy), (expected, best) in zip(ours.loglikelihood(asked), peer.loglikelihood(asked), strict=True):
        assert score == pytest.approx(expected, rel=1e-5) and greedy == best


def test_one_input_serves_continuations_of_several_lengths(ours: HarnessModel, loaded: Any) -> None:
    """log p(6, 7, 8 | 5) and log p(8 | 5, 6, 7) are read from one forward of 5, 6, 7."""
    with torch.no_grad():
        scores = loaded.model(torch.tensor([[5, 6, 7]]))[0].log_softmax(-1)
    long, short = ours._loglikelihood_tokens([(None, [5], [6, 7, 8]), (None, [5, 6, 7], [8])])
    assert long[0] == pytest.approx((scores[0, 6] + scores[1, 7] + scores[2, 8]).item(), rel=1e-5)
    assert short[0] == pytest.approx(scores[2, 8].item(), rel=1e-5)


def test_greedy_continuations_are_recognised(ours: HarnessModel, peer: HFLM) -> None:
    texts = ours.generate_until(
        requests("generate_until", [(context, {"until": [], "max_gen_toks": 2}) for context, _ in PAIRS[:5]])
    )
    asked = requests("loglikelihood", [(context, text) for (context, _), text in zip(PAIRS, texts, strict=False)])
    answers = ours.loglikelihood(asked)
    assert answers == [(pytest.approx(score, rel=1e-5), best) for score, best in peer.loglikelihood(asked)]
    assert any(best for _, best in answers)


def test_rolling_log_likelihoods_equal_the_harness_s_own(ours: HarnessModel, peer: HFLM) -> None:
    asked = requests("loglikelihood_rolling", [("def",), (LINES[3],), ("".join(LINES),)])
    assert len(ours.tok_encode("".join(LINES))) > 3 * ours.max_length
    assert ours.loglikelihood_rolling(asked) == pytest.approx(peer.loglikelihood_rolling(asked), rel=1e-5)


def test_rolling_is_the_sum_over_every_token_once(ours: HarnessModel, loaded: Any) -> None:
    ids = ours.tok_encode(LINES[0])[:20]
    with torch.no_grad():
        scores = loaded.model(torch.tensor([[ours.prefix_token_id, *ids[:-1]]]))[0].log_softmax(-1)
    expected = scores.gather(1, torch.tensor(ids)[:, None]).sum().item()
    text = ours.tokenizer.decode(ids)
    assert ours.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)])) == [
        pytest.approx(expected, rel=1e-5)
    ]


def test_texts_equal_the_harness_s_own(ours: HarnessModel, peer: HFLM) -> None:
    settings = [{"until": ["\n"], "max_gen_toks": 8}, {"until": ["):", "value"], "max_gen_toks": 12}]
    asked = requests("generate_until", [(context or "x", kwargs) for context, _ in PAIRS for kwargs in settings])
    assert ours.generate_until(asked) == peer.generate_until(asked)


def test_an_early_exit_is_judged_as_the_model_cut_there(loaded: Any) -> None:
    early = HarnessModel(loaded.model, loaded.data.tokenizer, exit_layer=2)
    context, continuation = early.tok_encode("def function"), early.tok_encode("_1_2")
    model = loaded.model
    with torch.no_grad():
        states = model.run_layers(model.embed(torch.tensor([context + continuation[:-1]])), 0, 2)
    scores = model.head(states)[0, len(context) - 1 :].log_softmax(-1)
    expected = scores.gather(1, torch.tensor(continuation)[:, None]).sum().item()
    ((found, _),) = early._loglikelihood_tokens([(None, context, continuation)])
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_same_input_is_read_once(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two choices of one token each, after the same context: one row of one batch."""
    from edgetrain.evaluation import harness

    shapes = []
    whole = harness.read
    monkeypatch.setattr(
        harness, "read", lambda model, tokens, layer: shapes.append(tokens.shape) or whole(model, tokens, layer)
    )
    HarnessModel(loaded.model, loaded.data.tokenizer)._loglikelihood_tokens([(None, [5, 6], [7]), (None, [5, 6], [8])])
    assert shapes == [(1, 2)]


def test_tasks_give_the_same_numbers_as_the_exported_folder(
    loaded: Any, peer: HFLM, own_tasks: Path, tmp_path: Path
) -> None:
    names = ["own_choice", "own_generation", "own_rolling"]
    metrics = benchmark(
        loaded, RunFolder(tmp_path), f"[{','.join(names)}]", include_path=str(own_tasks), num_fewshot="1"
    )
    manager = TaskManager(include_path=str(own_tasks), include_defaults=False)
    expected = simple_evaluate(peer, tasks=names, task_manager=manager, num_fewshot=1, bootstrap_iters=1000)["results"]
    for task in names:
        for key, value in expected[task].items():
            metric, comma, _ = key.partition(",")
            if comma and isinstance(value, float):
                assert metrics[f"eval/{task}/{metric}"] == pytest.approx(value, rel=1e-5)
    assert {"eval/own_choice/acc", "eval/own_choice/acc_stderr", "eval/own_rolling/bits_per_byte"} <= metrics.keys()
    assert RunFolder(tmp_path).read_json("metrics.json") == metrics


def test_eval_adds_to_the_runs_table_and_report(finished_copy: Path, edgetrain: Any, own_tasks: Path) -> None:
    run, own = f"run={finished_copy}", f"include_path={own_tasks}"
    code, out, err = edgetrain("eval", run, "tasks=[own_choice]", own, "limit=5")
    assert code == 0, err
    assert "eval/own_choice/acc " in out
    code, _, err = edgetrain("eval", run, "tasks=own_choice", own, "exit_layer=2", "batch_size=2")
    assert code == 0, err
    folder = RunFolder(finished_copy)
    rows = {(row["exit"], row["metric"]): row for row in folder.read_table("eval")}
    assert rows.keys() == {(layer, metric) for layer in ("last", "2") for metric in ("acc", "acc_norm")}
    assert (rows["last", "acc"]["samples"], rows["2", "acc"]["samples"]) == ("5", "12")
    metrics = folder.read_json("metrics.json")
    assert metrics["eval/exit_2/own_choice/acc"] == float(rows["2", "acc"]["value"])
    assert "Benchmarks" in (finished_copy / "report.html").read_text()


def test_eval_without_tasks_prints_the_tasks_own_metrics(finished_copy: Path, edgetrain: Any) -> None:
    code, out, err = edgetrain("eval", f"run={finished_copy}")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["test/loss", "test/perplexity", "test/accuracy"]


@pytest.fixture
def finished_copy(finished_run: RunFolder, workplace: Path) -> Path:
    return shutil.copytree(finished_run.path, workplace / "copy")


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["tasks=[]"], r"tasks= is empty; name some"),
        (["tasks=own_choice", "limit=1.5"], "limit=1.5 is neither a number of samples nor a share"),
        (["tasks=own_choice", "limit=many"], "limit=many is not a number"),
        (["tasks=own_choice", "exit_layer=9"], "exit_layer=9: the model has layers 1 to 4"),
        (["tasks=own_choice", "batch_size=0"], "batch_size=0 must be at least 1"),
        (["tasks=own_choice", "num_fewshot=-1"], "num_fewshot=-1 must be at least 0"),
        (["tasks=own_choice", "include_path=nowhere"], "include_path=nowhere is not a folder"),
        (["limit=3"], "limit=3"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    finished_copy: Path, edgetrain: Any, own_tasks: Path, typed: list[str], sentence: str
) -> None:
    own = [] if any("include_path" in word for word in typed) or typed == ["limit=3"] else [f"include_path={own_tasks}"]
    before = (finished_copy / "metrics.json").read_text()
    code, _, err = edgetrain("eval", f"run={finished_copy}", *typed, *own)
    assert code == 2
    assert re.search(f"error: .*{sentence}", err), err
    assert (finished_copy / "metrics.json").read_text() == before


def test_data_that_is_not_there_is_a_sentence(loaded: Any, tmp_path: Path) -> None:
    task = {
        "task": "own_lost",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "lost.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (tmp_path / "own_lost.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(UserError, match=r"tasks=own_lost cannot be loaded or run \(.*lost\.jsonl.*hub"):
        benchmark(loaded, RunFolder(tmp_path / "run"), "own_lost", include_path=str(tmp_path))
    assert not (tmp_path / "run").exists()


def test_generation_that_we_do_not_have_is_refused(ours: HarnessModel) -> None:
    assert ours.generation({"until": "x", "max_gen_toks": 4, "do_sample": False, "temperature": 0.7}) == (4, 0.0, ["x"])
    assert ours.generation({"max_gen_toks": 4, "temperature": 0.7}) == (4, 0.7, [])
    assert ours.generation({"max_gen_toks": 4, "do_sample": True})[1] == 1.0
    with pytest.raises(UserError, match="generation_kwargs num_beams, which our decoding does not have"):
        ours.generation({"num_beams": 4})
    with pytest.raises(UserError, match="asks for 256 new tokens, which leave no room .* context of 32"):
        ours.generation({})


def test_the_papers_tasks_are_the_harness_s_and_others_are_a_sentence() -> None:
    """All eight exist there under these names; their data is on the hub. Only the folders that have them are read."""
    places = ("arc", "super_glue", "piqa", "siqa", "hellaswag", "openbookqa", "winogrande")
    tasks = Path(lm_eval.tasks.__file__).parent
    manager = TaskManager(include_path=[tasks / place for place in places], include_defaults=False)
    assert chosen_tasks(["mobilellm_zero_shot"], manager) == list(ALIASES["mobilellm_zero_shot"])
    assert set(ALIASES["mobilellm_zero_shot"]) <= set(manager.all_tasks)
    assert chosen_tasks(["boolq", "arc_eas*", "boolq"], manager) == ["boolq", "arc_easy"]
    with pytest.raises(UserError, match=r"the harness has no 'bolq' \(did you mean 'boolq'\?\)"):
        chosen_tasks(["bolq"], manager)
