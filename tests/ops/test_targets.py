"""Both forms of a batch, against the tokens written out."""

import torch

from edgetrain.ops.targets import IGNORED, flat_rows, inputs_and_targets, supervised_rows


def test_text_is_shifted_by_one_and_asked_for_everywhere() -> None:
    batch = torch.tensor([[1, 2, 3], [4, 5, 6]])
    inputs, targets = inputs_and_targets(batch)
    assert inputs.tolist() == [[1, 2], [4, 5]]
    assert targets.tolist() == [[2, 3], [5, 6]]
    assert supervised_rows(batch) is None
    assert flat_rows(targets, None).tolist() == [2, 3, 5, 6]


def test_pairs_are_asked_for_where_they_have_a_target() -> None:
    batch = torch.tensor([[[1, 2, 3], [IGNORED, 8, 9]], [[4, 5, 6], [7, IGNORED, IGNORED]]])
    inputs, targets = inputs_and_targets(batch)
    assert inputs.tolist() == [[1, 2, 3], [4, 5, 6]]
    rows = supervised_rows(batch)
    assert flat_rows(targets, rows).tolist() == [8, 9, 7]
    states = torch.arange(12.0).view(2, 3, 2)
    assert flat_rows(states, rows).tolist() == [[2, 3], [4, 5], [6, 7]]


def test_the_mark_is_what_torchs_cross_entropy_leaves_out() -> None:
    logits = torch.randn(2, 5)
    marked = torch.nn.functional.cross_entropy(logits, torch.tensor([3, IGNORED]))
    torch.testing.assert_close(marked, torch.nn.functional.cross_entropy(logits[:1], torch.tensor([3])))
