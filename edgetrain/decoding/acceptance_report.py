"""What the report shows of self-speculative decoding: a table, three figures, and one coloured sample."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from edgetrain.decoding.self_speculative import Source
from edgetrain.folder import Row, RunFolder
from edgetrain.report.figures import heatmap, scatter_chart

STYLES: dict[Source, str] = {"drafted": "good", "corrected": "bad", "bonus": "note"}
LEGEND = {
    "plain": "prompt",
    "good": "drafted and accepted",
    "bad": "corrected by the last layer",
    "note": "bonus token",
}
COLUMNS = (
    "speedup: ratio of times, the median over prompts; speedup_low, speedup_high: its quartiles; bound: what layer "
    "passes alone would give; mismatches: prompts whose output is not the autoregressive one; agreement: share of "
    "held-out tokens where the exit predicts what the last layer does; longest_repeat: tokens of the longest span that "
    "occurs twice. All but acceptance_temperature_1 is greedy, and greedy output is the same for every exit layer and "
    "draft length: distinct_3 and longest_repeat (means over prompts) differ only where there are mismatches. "
    "Grey rows are not to be quoted: distinct_3 is below half of the held-out text's, and repetition is easy to draft."
)


def report_rows(folder: RunFolder, rows: list[Row], setting: str) -> None:
    """The table, heat maps of acceptance and speed-up, and speed-up against bound. setting: what all rows share."""
    folder.add_table("self_speculative", rows, "Self-speculative decoding", f"{setting}. {COLUMNS}", grey="collapsed")
    exit_layers = list(dict.fromkeys(row["exit_layer"] for row in rows))
    draft_lengths = list(dict.fromkeys(row["draft_length"] for row in rows))
    cells = {(row["exit_layer"], row["draft_length"]): row for row in rows}
    for name, title in (("acceptance", "Acceptance of drafted tokens"), ("speedup", "Measured speed-up")):
        grid = [[cells[exit_layer, length][name] for length in draft_lengths] for exit_layer in exit_layers]
        png = heatmap(grid, draft_lengths, exit_layers, "draft length (tokens)", "exit layer", value_label=name)
        folder.add_figure(f"self_speculative_{name}", png, title, f"Greedy; {setting}.")
    points = {
        f"exit layer {exit_layer}": [(row["bound"], row["speedup"]) for row in rows if row["exit_layer"] == exit_layer]
        for exit_layer in exit_layers
    }
    folder.add_figure(
        "self_speculative_bound",
        scatter_chart(points, "bound from layer passes (x)", "measured speed-up (x)", diagonal="measured = bound"),
        "Measured speed-up against its bound",
        "One point for each draft length. A point clearly above the line is a disturbed measurement.",
    )


def report_sample(
    folder: RunFolder, tokenizer: Any, prompt: list[int], trace: list[tuple[int, Source]], caption: str
) -> None:
    """One prompt's decoding, coloured by where each token came from."""
    styles = ["plain"] * len(prompt) + [STYLES[source] for _, source in trace]
    pieces = zip(text_pieces(tokenizer, [*prompt, *(token for token, _ in trace)]), styles, strict=True)
    spans = [("".join(text for text, _ in run), style) for style, run in groupby(pieces, key=lambda piece: piece[1])]
    folder.add_spans("self_speculative_sample", spans, LEGEND, "Where each token came from", caption)


def text_pieces(tokenizer: Any, tokens: list[int]) -> Iterator[str]:
    """The text that each token adds. One that ends inside a character adds nothing, the one that completes it all.

    What never becomes valid UTF-8 shows as U+FFFD. The pieces joined are the decoded text.
    """
    done = 0  # characters given so far
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count])
        complete = count == len(tokens) or not text.endswith("\ufffd")
        yield text[done:] if complete else ""
        done = len(text) if complete else done
