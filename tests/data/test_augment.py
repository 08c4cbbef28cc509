"""Media moved by epoch: by how much, alike for all who show the item, and the pieces themselves left as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from weft.data.augment import MEMORY, Augment, change_of, run_of, shift_of
from weft.data.pack import Item, Part, Piece
from weft.modalities.image import bend, move_patches, patches, shift
from weft.recipe import Recipe

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (32, 48, 3), np.uint8)  # 4 x 6 patches of 8


def recipe(image: float = 0.0, audio: float = 0.0) -> Recipe:
    made = Recipe()
    return replace(
        made,
        image=replace(made.image, size=48, patch=8, augment=image),
        audio=replace(made.audio, mels=10, augment=audio),
    )


def piece(name: str = "a.png", kind: str = "image") -> Piece:
    """A marker, the item, another token."""
    values, grid, advance = patches(PICTURE, 8)
    if kind == "audio":
        values, grid = RNG.standard_normal((24, 40)).astype(np.float16), np.repeat(np.arange(24.0)[:, None], 3, 1)
    positions = np.concatenate([np.zeros((1, 3)), grid + 1, np.full((1, 3), advance + 1)]).astype(np.float32)
    return Piece(np.zeros(26, np.int32), None, positions, (Item(kind, values, 1, name),), advance + 2)


def test_a_shift_is_a_function_of_seed_and_name() -> None:
    moves = [shift_of(seed, key, 3) for seed in range(40) for key in ("a", "b", "c")]
    assert moves == [shift_of(seed, key, 3) for seed in range(40) for key in ("a", "b", "c")]
    assert {row for row, _ in moves} == {column for _, column in moves} == set(range(-3, 4))
    assert shift_of(1, "a", 0) == (0, 0)


def test_patches_are_moved_as_the_pixels_would_be() -> None:
    still = patches(PICTURE, 8).values
    for down, right in ((0, 0), (3, -2), (-5, 7), (60, 60)):
        wanted = patches(shift(PICTURE, down, right), 8).values
        assert np.array_equal(move_patches(still, 6, 8, down, right), wanted)
    assert not np.array_equal(move_patches(still, 4, 8, 3, -2), patches(shift(PICTURE, 3, -2), 8).values), (
        "control: with the wrong number of columns it is another picture"
    )


def test_an_item_is_moved_alike_for_all_its_samples_and_the_piece_stays() -> None:
    augment, one, other = Augment(recipe(image=0.2)), piece(), piece()
    before = one.items[0].values.copy()
    moved = [augment.document([Part(p)], 5)[0].piece.items[0].values for p in (one, other)]
    assert moved[0] is moved[1] and np.array_equal(one.items[0].values, before)
    down, right = shift_of(5, "a.png", 10)
    assert (down, right) != (0, 0) and np.array_equal(moved[0], patches(shift(PICTURE, down, right), 8).values)
    found = {augment.document([Part(one)], turn)[0].piece.items[0].values.tobytes() for turn in range(30)}
    assert len(found) > 15, "another epoch, another place"


def test_a_picture_is_bent_about_its_middle_as_scipy_bends_it() -> None:
    smooth = PICTURE.astype(np.float32)
    for turn, (down, right) in enumerate([(0, 0), (2, -3), (40, 0)]):
        change = change_of(turn, "a.png", 0.2)
        middle = np.array([15.5, 23.5])
        offset = middle - change @ (middle + [down, right])
        wanted = np.stack([
            ndimage.affine_transform(smooth[..., c], change, offset, order=0, mode="nearest") for c in range(3)
        ], -1)  # fmt: skip
        assert (bend(smooth, change, down, right) != wanted).mean() < 0.01, "but for ties"
        assert (bend(smooth, change.T, down, right) != wanted).mean() > 0.2, "control: slanted the other way"
    for move in ((0, 0), (3, -2)):
        assert np.array_equal(bend(PICTURE, np.eye(2), *move), shift(PICTURE, *move))
    for thin in (PICTURE[:1], PICTURE[:, :1], PICTURE[:1, :1]):
        assert bend(thin, change_of(0, "a", 0.2)).shape == thin.shape


def test_how_a_picture_is_bent_is_a_function_of_seed_and_name() -> None:
    changes = np.stack([change_of(seed, key, 0.1) for seed in range(60) for key in ("a", "b")]) - np.eye(2)
    assert np.array_equal(changes[7] + np.eye(2), change_of(3, "b", 0.1))
    assert 0.09 < changes.max() < 0.1 and -0.1 < changes.min() < -0.09, "both ways, within its share"
    assert np.abs(np.corrcoef(changes.reshape(120, 4).T) - np.eye(4)).max() < 0.3, "each number on its own"
    made = replace(recipe(image=0.1), image=replace(recipe(image=0.1).image, warp=0.1))
    down, right = shift_of(5, "a.png", 5)
    values = patches(PICTURE, 8).values
    wanted = move_patches(values, 6, 8, down, right, change_of(5, "a.png", 0.1))
    assert np.array_equal(augment_of(made, piece(), 5), wanted) and not np.array_equal(
        augment_of(recipe(image=0.1), piece(), 5), wanted
    )
    assert Augment(replace(recipe(), image=replace(recipe().image, warp=0.1))).kinds == {"image"}


def test_only_what_the_recipe_names_is_moved() -> None:
    for kind, made in (("image", recipe(audio=0.3)), ("audio", recipe(image=0.3))):
        one = piece(kind=kind)
        assert augment_of(made, one) is one.items[0].values
    assert Augment(recipe()).kinds == frozenset()
    sound = piece(kind="audio")
    moved = {augment_of(recipe(audio=0.3), sound, turn).tobytes() for turn in range(40)}
    assert len(moved) == 7, "3 bands up, 3 down, and none"


def augment_of(made: Recipe, one: Piece, turn: int = 1) -> np.ndarray:
    return Augment(made).document([Part(one)], turn)[0].piece.items[0].values


def test_what_was_moved_is_not_hoarded() -> None:
    augment = Augment(recipe(image=0.2))
    size = piece().items[0].values.nbytes
    for number in range(3 * MEMORY // size):
        augment.document([Part(piece(f"{number}.png"))], 1)
    assert size < augment._bytes <= MEMORY and augment._bytes == sum(v.nbytes for v in augment._recent.values())


def test_runs_are_a_function_of_seed_and_name_and_within_their_share() -> None:
    runs = [run_of(seed, key, 80, 0.2) for seed in range(60) for key in ("a", "b")]
    assert runs == [run_of(seed, key, 80, 0.2) for seed in range(60) for key in ("a", "b")]
    longs = [stop - start for start, stop in runs]
    assert min(longs) == 0 and 14 <= max(longs) <= 16 and all(0 <= start <= stop <= 80 for start, stop in runs)
    assert run_of(3, "a", 80, 0.0)[0] == run_of(3, "a", 80, 0.0)[1] and run_of(1, "a", 3, 0.9)[1] <= 3


def test_a_sound_is_blanked_in_runs_of_bands_and_frames() -> None:
    """(24 tokens of 4 frames of 10 bands): what is not in a run stays, what is has the sound's mean."""
    made = replace(recipe(), audio=replace(recipe().audio, mels=10, mask=0.4))
    assert Augment(made).kinds == {"audio"}
    one = piece("a.wav", "audio")
    before = one.items[0].values.copy()
    seen = np.zeros((96, 10))
    for turn in range(40):
        moved = Augment(made).document([Part(one)], turn)[0].piece.items[0].values
        first, second = (run_of(turn, f"a.wav {n}", 10, 0.4) for n in (1, 2))
        frames = run_of(turn, "a.wav 3", 96, 0.2)
        inside = np.zeros((96, 10), bool)
        for start, stop in (first, second):
            inside[:, start:stop] = True
        inside[frames[0] : frames[1]] = True
        mean = before.mean(dtype=np.float32).astype(np.float16)
        assert np.array_equal(moved.reshape(96, 10), np.where(inside, mean, before.reshape(96, 10)))
        seen += inside
    assert 0 < seen.min() and seen.max() < 40, "every place is blanked by some turn and by none always"
    assert np.array_equal(one.items[0].values, before)
