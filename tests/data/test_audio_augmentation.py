"""What an epoch does to a clip: shifts, noise, and that nothing but the key decides it."""

import numpy as np
import pytest
import torch

from edgetrain.data.audio_augmentation import Augmentation, shifted

CLIP = np.arange(1, 9, dtype=np.float32) / 10


def ones(count: int, samples: int = 100) -> torch.Tensor:
    return torch.ones(count, samples) / 2


def keys(count: int, seed: int = 0, epoch: int = 0) -> list[tuple[int, int, int]]:
    return [(seed, epoch, index) for index in range(count)]


def test_a_shifted_clip_is_followed_or_led_by_zeros():
    assert shifted(CLIP, 3).tolist() == [0, 0, 0, *CLIP[:5].tolist()]
    assert shifted(CLIP, -3).tolist() == [*CLIP[3:].tolist(), 0, 0, 0]
    assert shifted(CLIP, 0).tolist() == CLIP.tolist()


def test_shifts_reach_both_ends_and_no_further():
    clips = Augmentation(shift=3)(torch.from_numpy(CLIP).repeat(200, 1), keys(200))
    shifts = {int((clip == 0).sum()) * (1 if clip[0] == 0 else -1) for clip in clips}
    assert shifts == {-3, -2, -1, 0, 1, 2, 3}


def test_noise_is_added_to_the_share_of_clips_that_was_asked_for():
    clips = Augmentation(noise_probability=0.8, noise_volume=0.1)(ones(1000), keys(1000))
    changed = (clips != 0.5).any(1).sum().item()
    assert 760 < changed < 840  # three standard deviations of 1000 draws with 0.8


def test_the_volume_of_noise_is_uniform_up_to_the_largest():
    noise = Augmentation(noise_probability=1.0, noise_volume=0.1)(ones(500, 4000), keys(500)) - 0.5
    volumes = noise.std(1)
    assert volumes.max() < 0.105
    assert volumes.mean().item() == pytest.approx(0.05, abs=0.005)


def test_recorded_noise_is_a_piece_of_a_recording_times_a_volume():
    recordings = [np.linspace(0.2, 0.4, 300, dtype=np.float32), np.linspace(-0.9, -0.7, 150, dtype=np.float32)]
    augment = Augmentation(noise_probability=1.0, noise_volume=0.5, noises=recordings)
    heard = set()
    for noise in augment(torch.zeros(100, 100), keys(100)).double().numpy():
        fits = []
        for which, recording in enumerate(recordings):
            pieces = np.lib.stride_tricks.sliding_window_view(recording.astype(np.float64), 100)
            volumes = (pieces @ noise) / (pieces**2).sum(1)
            errors = np.abs(pieces * volumes[:, None] - noise).max(1)
            fits.append((errors.min(), which, int(errors.argmin()), volumes[errors.argmin()]))
        error, which, start, volume = min(fits)
        assert error < 1e-6
        assert 0 <= volume <= 0.5
        heard.add((which, start))
    assert {which for which, _ in heard} == {0, 1}
    assert len(heard) > 40  # from everywhere in them


def test_a_sum_that_is_too_loud_is_clipped():
    augment = Augmentation(noise_probability=1.0, noise_volume=1.0, noises=[np.ones(200, np.float32)])
    assert augment(ones(50) * 2, keys(50)).max() == 1


def test_what_happens_to_a_clip_depends_on_its_key_alone():
    augment = Augmentation(20, 0.8, 0.1)
    whole = augment(ones(10), keys(10))
    assert torch.equal(augment(ones(4), keys(10)[6:]), whole[6:])
    assert not torch.equal(augment(ones(10), keys(10, epoch=1)), whole)
    assert not torch.equal(augment(ones(10), keys(10, seed=1)), whole)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    augment(ones(3), keys(3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize(
    ("settings", "changes"),
    [({}, False), ({"shift": 1}, True), ({"noise_probability": 0.1}, True), ({"noise_volume": 0.5}, False)],
)
def test_an_augmentation_says_whether_it_changes_anything(settings: dict, changes: bool):
    assert bool(Augmentation(**settings)) == changes


def test_noise_of_no_volume_changes_nothing():
    assert not Augmentation(noise_probability=1.0, noise_volume=0.0)
