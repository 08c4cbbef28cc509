"""What is hidden for `~text`, and how the hidden is asked for. All of it by the generator that is given.

BERT   the [mask] sat on [mask] mat          at each hidden place, the token that stood there
T5     the <0> sat on <1> mat                <0> cat <1> the <end>
"""

from __future__ import annotations

import numpy as np

from weft.data.pack import UNTRAINED, Piece

HIDDEN = 0.15  # share of the tokens (Devlin et al. 2018, section 3.1; Raffel et al. 2020, section 3.1.4)
MEAN = 3  # tokens of a hidden span, on average (Raffel et al. 2020, section 3.3.4)


def masked(piece: Piece, loss: np.ndarray, rng: np.random.Generator, mask: int, block: range) -> Piece:
    """Hide 15 % of the tokens that may bear loss, at least one: 80 % become `mask`, 10 % any id of `block`, 10 % stay.

    Devlin et al. 2018. The targets stand at the hidden places themselves.
    """
    places = np.flatnonzero(loss)
    if not len(places):
        return Piece(piece.ids, None, piece.positions, piece.items, piece.advance)
    hidden = rng.choice(places, size=max(1, round(HIDDEN * len(places))), replace=False)
    targets = np.full(len(piece), UNTRAINED, np.int32)
    targets[hidden] = piece.ids[hidden]
    fate, other = rng.random(len(hidden)), rng.integers(block.start, block.stop, len(hidden))
    ids = piece.ids.copy()
    ids[hidden] = np.where(fate < 0.8, mask, np.where(fate < 0.9, other, ids[hidden]))
    return Piece(ids, targets, piece.positions, piece.items, piece.advance)


def counts(tokens: int, most: int) -> tuple[int, int]:
    """Of a text of so many tokens: how many are hidden, and in how many spans (1 to `most`: each needs a sentinel)."""
    hidden = min(max(1, round(HIDDEN * tokens)), tokens)
    return hidden, max(1, min(round(hidden / MEAN), most, hidden, max(1, tokens - hidden)))


def corrupted(ids: np.ndarray, rng: np.random.Generator, sentinels: range, end: int) -> tuple[np.ndarray, np.ndarray]:
    """(source ids, target ids): the text with spans replaced by sentinels; the spans behind their sentinels, `end`.

    Raffel et al. 2020. Lengths depend on the text's length alone: source n - hidden + spans, target hidden + spans + 1.
    """
    hidden, spans = counts(len(ids), len(sentinels))
    kept = _parts(len(ids) - hidden, spans, rng, least=0 if len(ids) - hidden < spans else 1)
    gone = _parts(hidden, spans, rng, least=1)
    source, target, at = [], [], 0
    for sentinel, keep, hide in zip(sentinels, kept, gone, strict=False):
        source += [ids[at : at + keep], [sentinel]]
        target += [[sentinel], ids[at + keep : at + keep + hide]]
        at += keep + hide
    return np.concatenate(source).astype(np.int64), np.concatenate([*target, [end]]).astype(np.int64)


def _parts(total: int, parts: int, rng: np.random.Generator, least: int) -> np.ndarray:
    """(parts,) random sizes, each `least` or more, that sum to `total`."""
    cuts = np.sort(rng.choice(total - parts * least + parts - 1, size=parts - 1, replace=False)) if parts > 1 else []
    edges = np.concatenate([[-1], cuts, [total - parts * least + parts - 1]])
    return np.diff(edges).astype(np.int64) - 1 + least
