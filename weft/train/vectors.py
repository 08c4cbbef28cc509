"""Initial embeddings: word vectors into the table of a model that starts from nothing.

Shape letters:  V rows of the table  D its width  d features of a word vector

    d = D   as they are     d > D   their D principal directions     d < D   the first d features, the rest as it was
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weft.convert.pretrained import resolve_source
from weft.core.embed import Input
from weft.errors import RecipeError
from weft.modalities.vectors import match, read_vectors
from weft.model import Model


@torch.no_grad()
def give(model: Model, renderer: Any, source: str, weights: str = "") -> str:
    """Put the vectors of `source` (a path, or the name glove) into the table of words; says what they cover.

    Raises RecipeError for a model without such a table, that starts from other `weights`, or data without text.
    """
    if weights:
        raise RecipeError(f"Embeddings come with {weights} already; leave out model.embeddings, or start from nothing.")
    tables = word_tables(model, renderer.vocabulary.size)
    if not tables:
        raise RecipeError(f"The family {model.config.family} has no table of words; leave out model.embeddings.")
    if renderer.text is None:
        raise RecipeError("No column is text, so model.embeddings has nothing to give vectors to. Leave it out.")
    found = match(read_vectors(resolve_source(source)), renderer.text)
    if not found.covered.any():
        raise RecipeError(f"{source} knows none of the tokens of this text. Are its words of the same language?")
    told = []
    for table in tables:
        rows = torch.from_numpy(found.covered).nonzero()[:, 0]
        vectors, how = fitted(torch.from_numpy(found.values)[rows], table.weight.shape[1])
        vectors = vectors * (table.weight.std() / vectors.std())  # as large as what the model starts with
        at = rows + renderer.vocabulary.block("text").start
        table.weight[at, : vectors.shape[1]] = vectors.to(table.weight)
        told.append(how)
    return f"embeddings from {source}: {found}{told[0]}"


def word_tables(model: nn.Module, size: int) -> list[nn.Embedding]:
    """Tables of the whole vocabulary, a shared one once."""
    found = {id(m.table): m.table for m in model.modules() if isinstance(m, Input) and m.table is not None}
    return [table for table in found.values() if table.weight.shape[0] == size]


def fitted(vectors: Tensor, dim: int) -> tuple[Tensor, str]:
    """(n,d) -> (n,min(d,D)), and what was done, in words."""
    width = vectors.shape[1]
    if width == dim:
        return vectors, ""
    if width < dim:
        return vectors, f"; the other {dim - width} of {dim} features start as they do without"
    centred = vectors - vectors.mean(0)
    _, scale, directions = torch.linalg.svd(centred, full_matrices=False)
    kept = float(scale[:dim].square().sum() / scale.square().sum())
    return vectors @ directions[:dim].T, f"; {kept:.0%} of their variance fits into {dim} features"
