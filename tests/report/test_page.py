"""The report shows everything that a run left behind, says what is missing, and needs nothing but itself."""

import re
from pathlib import Path

import pytest

from edgetrain.errors import UserError
from edgetrain.folder import RunFolder
from edgetrain.report.figures import line_chart
from edgetrain.report.page import write_report

CONFIG = "recipe: tiny\ndescription: A tiny run.\ndata:\n  path: https://example.org/<b>\n"
LOG = "epoch,lr,step,train/loss,validation/loss\n0,0.1,0,3.5,\n0,0.2,10,2.5,\n0,,10,,2.75\n1,0.1,20,nan,\n"


@pytest.fixture
def empty(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create("tiny", str(tmp_path / "tiny" / "20260102-030405-abcd"))
    (folder.path / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def full(empty: RunFolder) -> RunFolder:
    empty.write_json(
        "environment.json", {"command": "python -m edgetrain recipe=tiny", "python": "3.10", "gpu": {"count": 2}}
    )
    empty.write_json("metrics.json", {"test/loss": 2.34567, "parameters": 1234567, "format": "int8"})
    claims = [
        {"effect": "faster", "paper": "1.8x", "measured": "1.7x", "verdict": "seen", "note": "greedy"},
        {"effect": "smaller", "paper": "4x", "measured": 1.0, "verdict": "not seen", "note": ""},
        {"effect": "cooler", "paper": "2 W", "measured": None, "verdict": "undecided", "note": ""},
    ]
    empty.write_json("claims.json", claims)
    empty.add_figure("exits", line_chart({"a": [(1, 2), (2, 1)]}, "layer", "loss"), "Exits & <script>alert(1)</script>")
    rows = [
        {"exit layer": 1, "loss": 12345.678, "name": "a|b <i>", "worse": True},
        {"exit layer": 2, "loss": 2.99961, "name": "007", "worse": False},
    ]
    empty.add_table("exits", rows, "Every exit", "By layer.", grey="worse")
    spans = [("def ", "plain"), ("f<x>", "good"), ("()", "bad"), ("[]", "note")]
    legend = {"good": "accepted", "bad": "rejected", "note": "corrected"}
    empty.add_spans("sample", spans, legend, "Sample")
    (empty.path / "logs" / "part_0").mkdir(parents=True)
    (empty.path / "logs" / "part_0" / "metrics.csv").write_text(LOG)
    return empty


def written(folder: RunFolder) -> tuple[str, str]:
    page = write_report(folder)
    assert page == folder.path / "report.html"
    return page.read_text(), (folder.path / "report.md").read_text()


def test_page_is_self_contained(full: RunFolder) -> None:
    page, _ = written(full)
    assert re.findall(r"<script|<link|<iframe|@import|url\(", page) == []
    assert re.findall(r"""\s(?:href|srcset|action)\s*=""", page) == []
    sources = re.findall(r'\ssrc="([^"]{0,22})', page)
    assert sources == ["data:image/png;base64,"] * 3
    assert page.count("https://") == 1  # the configuration's own text
    assert "default-src 'none'" in page


def test_text_from_files_is_escaped(full: RunFolder) -> None:
    page, markdown = written(full)
    for text in (page, markdown):
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert "<script>" not in text
        assert "<i>" not in text
    assert "https://example.org/&lt;b&gt;" in page
    assert "a\\|b &lt;i&gt;" in markdown


def test_sections_stand_in_order(full: RunFolder) -> None:
    _, markdown = written(full)
    headings = re.findall(r"^#+ (\w+)", markdown, re.MULTILINE)
    assert headings == ["tiny", "Results", "Exits", "Every", "Sample", "Training", "How"]


def test_opening_has_description_time_and_command(full: RunFolder) -> None:
    for text in written(full):
        assert "A tiny run." in text
        assert "Run of 2026-01-02 03:04" in text
        assert "python -m edgetrain recipe=tiny" in text


def test_verdicts_are_badges_with_text(full: RunFolder) -> None:
    page, markdown = written(full)
    assert '<span class="badge good">✓ seen</span>' in page
    assert '<span class="badge bad">✗ not seen</span>' in page
    assert '<span class="badge note">? undecided</span>' in page
    assert "| cooler | 2 W | not measured | ? undecided |" in markdown


def test_rows_are_greyed_and_the_grey_column_is_hidden(full: RunFolder) -> None:
    page, markdown = written(full)
    assert page.count('<tr class="grey">') == 1
    assert re.search(r'<tr class="grey"><td class="number">1</td>', page)
    assert "<th>worse</th>" not in page and "True" not in page
    assert "| exit layer | loss | name |" in markdown
    assert "In italics: worse." in markdown and "Greyed: worse." in page


def test_markdown_has_every_table_value(full: RunFolder) -> None:
    _, markdown = written(full)
    assert "| *1* | *12,350* | *a\\|b &lt;i&gt;* |" in markdown
    assert "| 2 | 3.000 | 007 |" in markdown
    assert "| test/loss | 2.346 |" in markdown
    assert "| parameters | 1,234,567 |" in markdown
    assert "| gpu.count | 2 |" in markdown
    assert "| python | 3.10 |" in markdown  # a version is text, not a number


def test_numbers_stand_right(full: RunFolder) -> None:
    page, markdown = written(full)
    assert '<th class="number">loss</th><th>name</th>' in page
    assert "|---:|---:|---|" in markdown


def test_spans_are_coloured_and_explained(full: RunFolder) -> None:
    page, markdown = written(full)
    assert 'def <span class="good">f&lt;x&gt;</span><span class="bad">()</span>' in page
    assert '<p class="legend"><span class="good">accepted</span>' in page
    assert "def {+f<x>+}[~()~](*[]*)" in markdown
    assert "`{+text+}` accepted; `[~text~]` rejected; `(*text*)` corrected" in markdown


def test_training_is_drawn_and_lost_values_are_told(full: RunFolder) -> None:
    _, markdown = written(full)
    assert "(figures/training_loss.png)" in markdown and (full.path / "figures" / "training_loss.png").is_file()
    assert "(figures/training_other.png)" in markdown
    assert "train/loss was not a finite number in 1 of 3 rows, first at step 20." in markdown


def test_files_are_listed_with_sizes(full: RunFolder) -> None:
    _, markdown = written(full)
    assert f"| config.yaml | {len(CONFIG)} B |" in markdown
    assert "| report.html |" not in markdown


def test_same_folder_gives_same_bytes(full: RunFolder) -> None:
    assert written(full) == written(full)


def test_missing_parts_are_said(empty: RunFolder) -> None:
    for text in written(empty):
        assert "No claim of a paper was checked" in text
        assert "No metrics were measured." in text
        assert "No training curve was logged." in text
        assert "The environment was not recorded." in text
        assert "The command that made this run was not recorded." in text


def test_missing_and_empty_files_of_items_are_said(full: RunFolder) -> None:
    (full.path / "figures" / "exits.png").unlink()
    (full.path / "tables" / "exits.csv").unlink()
    full.add_table("none", [], "Nothing")
    _, markdown = written(full)
    assert "The figure figures/exits.png is missing." in markdown
    assert "The table tables/exits.csv is missing." in markdown
    assert "The table tables/none.csv is empty." in markdown


def test_more_metrics_than_tiles_are_folded(empty: RunFolder) -> None:
    empty.write_json("metrics.json", {f"metric {n}": n for n in range(20)})
    page, markdown = written(empty)
    assert page.count("<dt>") == 8 and "all 20 metrics" in page
    assert "| metric 19 | 19 |" in markdown


def test_fence_is_longer_than_any_in_the_text(empty: RunFolder) -> None:
    (empty.path / "config.yaml").write_text("recipe: tiny\nnote: '```'\n")
    assert "````\nrecipe: tiny" in written(empty)[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "a: [", "cannot be read"),
        ("metrics.json", "{", "not valid JSON"),
        ("metrics.json", "[1]", "should hold a mapping"),
        ("claims.json", '["seen"]', "should hold a list of mappings"),
        ("report.json", '[{"kind": "figure"}]', "damaged item"),
        (
            "report.json",
            '[{"kind": "spans", "name": "a", "title": "a", "spans": [["x"]], "legend": {}}]',
            "damaged item",
        ),
        ("report.json", '[{"kind": "figure", "name": "../../x", "title": "a"}]', "outside the run folder"),
    ],
)
def test_damaged_file_is_a_user_error(empty: RunFolder, name: str, content: str, message: str) -> None:
    path = empty.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        write_report(empty)
    assert str(path) in str(error.value)
