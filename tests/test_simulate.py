"""The simulated event camera: known answers for its pixels, its moving image and its files."""

import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path as FilePath

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from refsnn.datasets.camera import Camera, record
from refsnn.datasets.events import Events, read_aedat2
from refsnn.datasets.simulate import NOTE, Path, _view, brightness, simulate, statistics, write_folder
from refsnn.errors import UserError

QUIET = Camera(threshold=0.2, mismatch=0, noise=0, refractory=0)
SHORT = Path(loops=1)
CLASSES = ("cat", "ship")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photograph(seed: int = 0, size: int = 32) -> np.ndarray:
    """Something like an image: (3, size, size) uint8, smooth blobs with edges."""
    coarse = np.kron(generator(seed).integers(0, 256, (3, 4, 4)), np.ones((1, size // 4, size // 4)))
    return coarse.astype(np.uint8)


def ramp(change: float, camera: Camera = QUIET, steps: int = 1, duration: int = 100_000) -> Events:
    """The events of one pixel whose level rises by `change` at a constant slope, reckoned in so many time steps."""
    levels = [np.full((1, 1), change * k / steps) for k in range(steps + 1)]
    return record(levels, np.linspace(0, duration, steps + 1), camera, generator())


def gaps(events: Events) -> np.ndarray:
    """Times between neighbouring events of each pixel."""
    pixel = events.y.astype(int) * events.width + events.x
    order = np.lexsort((events.t, pixel))
    return np.diff(events.t[order])[np.diff(pixel[order]) == 0]


# ---------------------------------------------------------------------------------------------------------- one pixel
@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(0.05, 0.5), st.integers(1, 7))
def test_a_ramp_makes_floor_of_change_by_threshold_events_where_it_crosses(
    change: float, theta: float, steps: int
) -> None:
    ratio = abs(change) / theta
    assume(abs(ratio - round(ratio)) > 1e-6)
    events = ramp(change, replace(QUIET, threshold=theta), steps)
    crossed = np.arange(1, int(ratio) + 1) / ratio * 100_000 if ratio >= 1 else np.zeros(0)
    assert len(events) == int(ratio)
    assert np.all(np.abs(events.t - np.floor(crossed)) <= 1)    # 1: a crossing within rounding of a whole microsecond
    assert np.all(events.p == (change > 0))


def test_a_refractory_pixel_follows_a_ramp_with_the_period_of_crossing_and_reset_together() -> None:
    events = ramp(2.0, replace(QUIET, refractory=3_000))        # crosses 0.2 every 10 ms, then is blind for 3 ms
    assert events.t.tolist() == [10_000, 23_000, 36_000, 49_000, 62_000, 75_000, 88_000]
    in_steps = ramp(2.0, replace(QUIET, refractory=3_000), steps=7)
    assert np.abs(in_steps.t - events.t).max() <= 1


def test_a_reset_longer_than_a_time_step_ends_where_it_ends() -> None:
    levels = [np.array([[level]]) for level in (0.0, 0.3, 0.3, 0.3, 0.45, 0.75)]
    events = record(levels, np.array([0, 30, 40, 50, 65, 95]), replace(QUIET, refractory=35), generator())
    # at 20 us it has risen by 0.2; blind until 55 us, where it stands at 0.35; 0.55 is reached at 75 us
    assert events.t.tolist() == [20, 75]


def test_a_pixel_remembers_where_it_fired_and_answers_both_directions() -> None:
    levels = [np.array([[level]]) for level in (0.0, 0.5, -0.1)]
    events = record(levels, np.array([0, 50, 110]), QUIET, generator())
    # up: 0.2 at 20, 0.4 at 40; down from 0.5 at 50 us with 0.01 per us: 0.2 at 80, 0.0 at 100
    assert np.abs(events.t - [20, 40, 80, 100]).max() <= 1
    assert events.p.tolist() == [1, 1, 0, 0]


def test_times_are_rounded_down() -> None:
    assert ramp(0.3, duration=10).t.tolist() == [6]             # of 6.67


def exactly(levels: list[Fraction], times: list[int], theta: Fraction, refractory: int) -> list[tuple[int, int]]:
    """Time, rounded down, and polarity of one pixel's events: from the text of `camera`, in rational numbers."""
    remembered, awake, events = levels[0], Fraction(0), []
    for (a, b), (start, end) in zip(pairwise(levels), pairwise(times), strict=True):
        slope = (b - a) / (end - start)
        if start < awake <= end:
            remembered = a + slope * (awake - start)
        while awake <= end and abs(b - remembered) >= theta:
            on = b > remembered
            t = start + (remembered + (theta if on else -theta) - a) / slope
            events.append((t.numerator // t.denominator, int(on)))
            awake = t + refractory
            if awake <= end:
                remembered = a + slope * (awake - start)
    return events


@settings(deadline=None)
@given(st.lists(st.integers(-97, 97), min_size=2, max_size=8), st.sampled_from([0, 1, 90, 1_500, 4_000]), st.data())
def test_any_course_of_light_makes_the_events_of_exact_arithmetic(
    levels: list[int], refractory: int, data: st.DataObject
) -> None:
    steps = data.draw(st.lists(st.integers(100, 3_000), min_size=len(levels) - 1, max_size=len(levels) - 1))
    times = [0, *np.cumsum(steps).tolist()]
    theta = Fraction(1009, 4096)                # no multiple leads from 1/7 to a level: rounding cannot decide
    course = [Fraction(1, 7), *(Fraction(level, 48) for level in levels[1:])]
    wanted = exactly(course, times, theta, refractory)
    camera = replace(QUIET, threshold=float(theta), refractory=refractory)
    found = record([np.array([[float(level)]]) for level in course], np.array(times), camera, generator())
    assert found.p.tolist() == [on for _, on in wanted]
    assert all(abs(a - b) <= 1 for a, (b, _) in zip(found.t.tolist(), wanted, strict=True))


def test_no_change_and_no_noise_make_no_events() -> None:
    assert len(simulate(np.full((3, 32, 32), 77, np.uint8), QUIET, SHORT, generator())) == 0
    assert len(ramp(0.199)) == 0


@pytest.mark.parametrize("refractory", [0, 1, 700, 20_000])
def test_no_pixel_sends_twice_within_the_refractory_time_noise_included(refractory: int) -> None:
    camera = Camera(threshold=0.1, noise=40, refractory=refractory)
    events = simulate(photograph(), camera, SHORT, generator())
    assert len(gaps(events)) > 1_000
    assert gaps(events).min() >= refractory


def test_noise_never_takes_an_event_of_the_light_away() -> None:
    camera = Camera(mismatch=0, noise=0, refractory=2_000)
    clean, noisy = (simulate(photograph(), replace(camera, noise=rate), SHORT, generator()) for rate in (0, 40))
    alone, among = (set(zip(e.x.tolist(), e.y.tolist(), e.t.tolist(), e.p.tolist(), strict=True)) for e in
                    (clean, noisy))
    assert alone < among


def test_thresholds_differ_by_the_mismatch_and_stay_above_zero() -> None:
    levels = [np.zeros((100, 100)), np.full((100, 100), 1.0)]
    times = np.array([0, 10_000_000])
    first = record(levels, times, replace(QUIET, threshold=0.7, mismatch=0.03), generator())
    assert len(first) == 10_000                                 # once each: at 0.7 or so, at 1.4 never
    assert abs(first.t.mean() / 1e7 - 0.7) < 0.002
    assert abs(first.t.std() / 1e7 - 0.03) < 0.002
    wild = record(levels, times, replace(QUIET, threshold=0.6, mismatch=5), generator())
    counts = np.bincount(wild.y.astype(int) * 100 + wild.x, minlength=10_000)
    assert counts.max() == int(1 / 0.06)                        # the least threshold is a tenth of the mean


def test_noise_comes_at_the_rate_asked_for_of_both_polarities_anywhere() -> None:
    dark = [np.zeros((64, 64))] * 2
    events = record(dark, np.array([0, 10_000_000]), replace(QUIET, noise=2.0), generator())
    expected = 2.0 * 64 * 64 * 10
    assert abs(len(events) - expected) < 5 * expected**0.5
    assert abs(events.p.mean() - 0.5) < 0.01
    counts = np.bincount(events.y.astype(int) * 64 + events.x, minlength=64 * 64)
    assert 0.9 < counts.var() / counts.mean() < 1.1             # Poisson
    assert abs(events.t.mean() / 1e7 - 0.5) < 0.01


def test_time_steps_do_not_change_a_linear_scene() -> None:
    slopes = generator().normal(size=(20, 20))
    coarse, fine = (record([slopes * k / steps for k in range(steps + 1)], np.linspace(0, 1e5, steps + 1), QUIET,
                           generator()) for steps in (2, 16))
    assert len(coarse) == len(fine)
    assert np.abs(coarse.t - fine.t).max() <= 1


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"mismatch": -1}, {"refractory": -1}, {"refractory": 0.5},
                                   {"noise": -1}, {"dark": 0}, {"height": 0}, {"threshold": float("nan")}])
def test_a_camera_without_meaning_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Camera(**wrong)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- the movement
def test_the_path_is_that_of_the_data_set() -> None:
    offsets, durations = Path().loop()
    assert len(offsets) == 40
    assert offsets[::10].tolist() == [[0, 0], [10, -10], [20, 0], [10, 10]]
    assert np.allclose(offsets[5], [5, -5])
    assert np.allclose(durations, 5_000)                        # 24 segments of 50 ms: 1.2 s
    last = simulate(photograph(), Camera(), Path(), generator()).t[-1]
    assert 1_190_000 < last <= 1_200_000


@pytest.mark.parametrize(("corners", "brighter"), [(((0, 0), (1, 0)), True), (((1, 0), (0, 0)), False)])
def test_a_bright_edge_that_moves_right_makes_on_events_and_off_events_when_it_returns(
    corners: tuple[tuple[float, float], ...], brighter: bool
) -> None:
    image = np.zeros((32, 32))
    image[:, :16] = 1.0                                         # bright on the left
    events = simulate(image, QUIET, Path(corners=corners, loops=1, stride=16), generator())
    assert np.all(events.p[events.t < 80_000] == brighter)
    assert np.all(events.p[events.t >= 80_000] == (not brighter))
    assert 55 < events.x.min() <= events.x.max() < 75           # about the middle, where the edge is
    assert set(events.y) == set(range(128))


def test_an_edge_that_moves_down_moves_over_rows() -> None:
    image = np.zeros((32, 32))
    image[:16] = 1.0
    events = simulate(image, QUIET, Path(corners=((0, 0), (0, 1)), loops=1, stride=16), generator())
    assert np.all(events.p == (events.t < 80_000))
    assert 55 < events.y.min() <= events.y.max() < 75


def test_the_view_is_the_image_moved_by_whole_pixels() -> None:
    """A shift by 16 screen pixels of 512 is one pixel of 32: where nothing is interpolated the view is exact."""
    image = generator().random((32, 32))
    small = replace(QUIET, height=32, width=32, threshold=1e9)
    assert np.array_equal(_view(image, 0, 0, small), image)
    moved = _view(image, 1, -2, small)
    assert np.array_equal(moved[:-2, 1:], image[2:, :-1])
    assert np.array_equal(moved[:-2, 0], image[2:, 0])          # beyond the border, the border goes on
    assert np.allclose(_view(np.full((8, 8), 0.4), 0.3, 0.1, Camera()), 0.4)
    line = np.tile(np.linspace(0.1, 0.9, 32), (32, 1))          # cubic interpolation keeps straight lines
    inner = _view(line, 0, 0, Camera())[64, 8:-8]
    assert np.allclose(np.diff(inner), (line[0, 1] - line[0, 0]) / 4)


def test_a_screen_shows_nothing_below_black_or_above_white() -> None:
    image = np.zeros((32, 32))
    image[:, 16:] = 1.0                                         # where a bicubic curve overshoots by 0.07
    seen = _view(image, 0, 0, Camera())
    assert seen.min() == 0
    assert seen.max() == 1


@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_a_pixel_counts_the_contrast_that_the_screen_shows_it(gamma: float) -> None:
    """On an image that becomes brighter to the right, moved left: floor(|dL| / theta) ON events, column by column."""
    image = np.tile(np.linspace(0.1, 0.9, 32), (32, 1))
    way = Path(corners=((0, 0), (-1, 0)), stride=64, loops=1, gamma=gamma)      # 64 of 512 screen pixels: 4 of 32
    camera = replace(QUIET, threshold=0.02, dark=0.03)
    events = simulate(image, camera, way, generator())
    there = (events.t < 320_000) & (events.y == 64)
    columns = np.arange(8, 100)
    place = (columns + 0.5) / 4 - 0.5
    before, after = (np.log((0.1 + 0.8 / 31 * (place + moved)) ** gamma + 0.03) for moved in (0, 4))
    assert np.all(events.p[there] == 1)
    assert np.bincount(events.x[there], minlength=128)[columns].tolist() == ((after - before) // 0.02).tolist()


def test_a_closed_path_makes_as_many_on_as_off_events() -> None:
    once, twice = (simulate(photograph(), QUIET, Path(loops=n), generator()) for n in (1, 2))
    assert abs(statistics([once]).on_share - 0.5) < 0.02
    assert abs(statistics([twice]).on_share - 0.5) < 0.02
    assert abs(len(twice) / len(once) - 2) < 0.2


def test_twice_the_contrast_threshold_makes_about_half_the_events() -> None:
    low, high = (len(simulate(photograph(), replace(QUIET, threshold=theta), SHORT, generator())) for theta in
                 (0.04, 0.08))
    assert 0.45 < high / low < 0.55


def test_brightness_weighs_colours_and_refuses_what_is_no_image() -> None:
    pure = np.zeros((3, 1, 3), np.uint8)
    pure[0, 0, 0] = pure[1, 0, 1] = pure[2, 0, 2] = 255
    assert np.allclose(brightness(pure), [[0.299, 0.587, 0.114]])
    for wrong in (np.zeros((3, 4, 4)), np.zeros((1, 4, 4), np.uint8), np.full((4, 4), 1.5), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match="need"):
            brightness(wrong)


@pytest.mark.parametrize("wrong", [{"corners": ((0, 0),)}, {"corners": ((0, 0), (0, 0), (1, 1))}, {"loops": 0},
                                   {"speed": -1}, {"steps": 0}])
def test_a_path_that_stands_still_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Path(**wrong)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- files
def equal(a: Events, b: Events) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in "xytp")


def test_the_same_seed_makes_the_same_bits_and_another_makes_others() -> None:
    one, same, other = (simulate(photograph(), Camera(), SHORT, generator(seed)) for seed in (3, 3, 4))
    assert equal(one, same)
    assert not equal(one, other)


def images_of_two_classes(per_class: int = 3) -> tuple[np.ndarray, np.ndarray]:
    images = np.stack([photograph(k) for k in range(2 * per_class)])
    return images, np.arange(2 * per_class) % 2


def written(folder: FilePath, per_class: int = 2, seed: int = 5, **more: object) -> list[str]:
    told: list[str] = []
    images, labels = images_of_two_classes()
    write_folder(images, labels, CLASSES, folder, per_class, seed, path=SHORT, tell=told.append, **more)  # type: ignore[arg-type]
    return told


def test_a_folder_has_the_layout_of_the_data_set_and_reads_back_equal(tmp_path: FilePath) -> None:
    told = written(tmp_path / "set")
    files = sorted(str(file.relative_to(tmp_path / "set")) for file in (tmp_path / "set").rglob("*.aedat"))
    assert files == [f"{name}/cifar10_{name}_{k}.aedat" for name in CLASSES for k in range(2)]
    images, labels = images_of_two_classes()
    for c, name in enumerate(CLASSES):
        for k in range(2):
            drawn = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(c, k)))
            events = simulate(images[labels == c][k], Camera(), SHORT, drawn)
            assert equal(events, read_aedat2(tmp_path / "set" / name / f"cifar10_{name}_{k}.aedat"))
    assert told[-1].startswith("4 recordings: ")
    assert "CIFAR10-DVS 205,072" in told[-1]


def contents(folder: FilePath) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_interrupted_folder_goes_on_to_the_same_bytes(tmp_path: FilePath) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    last = written(whole, 2)[-1]
    written(parts, 1)
    kept = parts / "cat" / "cifar10_cat_0.aedat"
    before = kept.stat().st_mtime_ns
    (parts / "ship" / "cifar10_ship_0.aedat").unlink()
    assert written(parts, 2)[-1] == last
    assert contents(parts) == contents(whole)
    assert kept.stat().st_mtime_ns == before


def test_an_interrupt_leaves_only_whole_files(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refsnn.disk.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path)
    assert contents(tmp_path) == {}


def test_what_would_mix_or_overwrite_is_refused_in_one_line(tmp_path: FilePath) -> None:
    def refused(**more: object) -> str:
        with pytest.raises(UserError) as caught:
            written(tmp_path, **more)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    written(tmp_path)
    assert "another seed" in refused(seed=6)
    assert "another seed, camera" in refused(camera=Camera(threshold=0.3))
    assert "class cat has 3 images" in refused(per_class=4)
    assert "0 recordings" in refused(per_class=0)
    kept = tmp_path / "cat" / "cifar10_cat_1.aedat"
    kept.write_bytes(kept.read_bytes()[:-3])
    assert refused().startswith(str(kept))
    (tmp_path / NOTE).unlink()
    assert "may be real" in refused()


def test_an_image_without_an_event_and_a_folder_that_is_a_file_are_refused(tmp_path: FilePath) -> None:
    grey = np.full((2, 3, 32, 32), 50, np.uint8)
    with pytest.raises(UserError, match="makes no event"):
        write_folder(grey, np.array([0, 1]), CLASSES, tmp_path / "grey", 1, 0, camera=QUIET)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        written(tmp_path / "file")
    with pytest.raises(ValueError, match="128x128"):
        written(tmp_path / "small", camera=Camera(height=64))


def test_the_note_says_what_made_the_folder(tmp_path: FilePath) -> None:
    written(tmp_path)
    note = json.loads((tmp_path / NOTE).read_text())
    assert "not the recordings of CIFAR10-DVS" in note["what"]
    assert note["seed"] == 5
    assert note["camera"]["threshold"] == Camera().threshold
    assert note["path"]["stride"] == 10


def test_statistics_of_recordings_that_can_be_counted() -> None:
    a = Events(np.array([1, 2]), np.array([0, 0]), np.array([100, 500_100]), np.array([1, 1]), 4, 4)
    b = Events(np.array([1] * 4), np.array([0] * 4), np.array([0, 1, 2, 500_000]), np.array([0, 0, 1, 0]), 4, 4)
    found = statistics([a, b])
    assert (found.recordings, found.count, found.rate, found.on_share) == (2, 3.0, 6.0, 0.5)
    assert found.beside_published().startswith("2 recordings: 3 events each (CIFAR10-DVS 205,072), 6 per second (157,9")
    with pytest.raises(ValueError, match="no rate"):
        statistics([])
