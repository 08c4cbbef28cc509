"""Weights from another layout to ours and back, by a family's table of names.

    theirs  q (H*E,D), k (K*E,D), v (K*E,D)  ── stacked ──>  ours  qkv (H*E + 2*K*E, D)
                                             <── split ───

What is missing, left over or of another shape stops the conversion, by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from weft.errors import ConvertError
from weft.families.names import Match, Rule, matches

SHOWN = 6  # names of one kind listed in a message


def turned(tensor: Tensor) -> Tensor:
    """(I,O) <-> (O,I); a bias is left as it is."""
    return tensor.T if tensor.dim() == 2 else tensor


def square(matrix: Tensor) -> Tensor:
    """(D,F) -> (D,C,p,p), C 3 or 1."""
    if matrix.dim() != 2:
        return matrix
    features = matrix.shape[1]
    channels = next((n for n in (3, 1) if features % n == 0 and math.isqrt(features // n) ** 2 * n == features), 0)
    if not channels:
        raise ConvertError(f"{features} features are no square patch of 3 channels or 1.")
    side = math.isqrt(features // channels)
    return matrix.unflatten(1, (channels, side, side))


# how -> (theirs to ours, ours to theirs)
HOW: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "same": (lambda t: t, lambda t: t),
    "transposed": (turned, turned),  # GPT-2's Conv1D
    "patches": (lambda t: t.flatten(1) if t.dim() == 4 else t, square),  # a convolution with stride p
    "row": (lambda t: t.flatten(0, 1) if t.dim() == 3 else t, lambda t: t[None]),  # (1,N,D) <-> (N,D)
    "scalar": (lambda t: t.reshape(()), lambda t: t.reshape(1)),
    "vector": (lambda t: t[None] if t.dim() == 1 else t, lambda t: t[0]),  # (D,) <-> (1,D)
}


def hows(rule: Rule, pieces: int) -> list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
    """The pair of functions for each of a rule's pieces: one for all, or one each, joined by a bar ("row|same")."""
    names = rule.how.split("|")
    return [HOW[name] for name in (names if len(names) == pieces else names * pieces)]


def own(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared one under its first name."""
    kept = model.state_dict().keys()
    return {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers()) if n in kept}


def aliases(model: nn.Module) -> dict[str, str]:
    """Second name of a shared parameter -> its first."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            found[name] = first[id(parameter)]
    return found


def to_ours(
    rules: Iterable[Rule], theirs: Mapping[str, Tensor], model: nn.Module, ignore: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Our tensors from theirs. `model` (on the meta device will do) says which there are and their shapes.

    ignore  patterns of names that may be there and carry nothing ("*.rotary_emb.inv_freq")
    Raises ConvertError: missing, surplus or misshapen tensors, by name; a second copy of a tied table that differs.
    """
    wanted, second = own(model), aliases(model)
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    missing, wrong, absent = [], [], set()
    for match in matches(rules, [*wanted, *second]):
        names = [name for name in match.theirs if name]
        gone = [name for name in names if name not in theirs]
        used.update(names)
        if gone:
            if match.rule.optional:
                absent.add(match.ours)
            elif match.ours in wanted:
                missing += gone
            continue
        target = wanted[second.get(match.ours, match.ours)]
        try:
            tensor = stack(match, theirs, target, model)
        except (RuntimeError, IndexError, ValueError):  # shapes that cannot be turned or stacked at all
            tensor = None
        if tensor is None or tensor.shape != target.shape:
            shapes = " + ".join(f"{name} {tuple(theirs[name].shape)}" for name in names)
            wrong.append(f"{shapes} for {match.ours} {tuple(target.shape)}")
        elif match.ours in wanted and match.ours not in out:
            out[match.ours] = tensor
        elif match.ours in wanted and not torch.equal(out[match.ours], tensor):
            wrong.append(f"{names[0]} is a second copy of {match.ours}, but its numbers differ")
        elif match.ours in second and not torch.equal(out.get(second[match.ours], tensor), tensor):
            wrong.append(f"{names[0]} is tied to {second[match.ours]} by the config, but its numbers differ")
    unnamed = [name for name in wanted if name not in out and name not in absent and not missing and not wrong]
    surplus = [n for n in theirs if n not in used and not any(fnmatchcase(n, pattern) for pattern in ignore)]
    complain(missing, surplus, wrong, [f"{name} (no rule names it)" for name in unnamed])
    return out


def stack(match: Match, theirs: Mapping[str, Tensor], target: Tensor, model: nn.Module) -> Tensor:
    """Their pieces as one tensor of ours; an empty name is filled with zeros of its piece's size."""
    reads = [read for read, _ in hows(match.rule, len(match.theirs))]
    if len(match.theirs) == 1:
        return reads[0](theirs[match.theirs[0]])
    counts = sizes(model, match.ours, len(match.theirs), target)
    pieces = [
        read(theirs[name]) if name else target.new_zeros(count, *target.shape[1:], device="cpu")
        for name, count, read in zip(match.theirs, counts, reads, strict=True)
    ]
    if [piece.shape[0] for piece in pieces] != counts:
        raise ValueError("pieces of another size")
    return torch.cat([piece.to(pieces[-1].dtype) for piece in pieces])


def sizes(model: nn.Module, name: str, pieces: int, tensor: Tensor) -> list[int]:
    """Rows of each piece: as the part that holds the matrix says (`sizes`), else all alike."""
    part = model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
    said = getattr(part, "sizes", ())
    if len(said) == pieces and sum(said) == tensor.shape[0]:
        return list(said)
    return [tensor.shape[0] // pieces] * pieces


def to_theirs(rules: Iterable[Rule], model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Their tensors from ours: those of `model`, or of a `state` of the same names and shapes.

    A tied table is written once, under the input's name. Raises ConvertError for a tensor that no rule names.
    """
    state = own(model) if state is None else state
    out, used = {}, set()
    for match in matches(rules, state):
        if match.ours in used:
            continue  # a second name that files may have
        tensor, writes = state[match.ours], [write for _, write in hows(match.rule, len(match.theirs))]
        pieces: Sequence[Tensor] = [tensor]
        if len(match.theirs) > 1:
            pieces = tensor.split(sizes(model, match.ours, len(match.theirs), tensor))
        for name, piece, write in zip(match.theirs, pieces, writes, strict=True):
            if name:
                out[name] = write(piece).contiguous()
        used.add(match.ours)
    complain([], [name for name in state if name not in used], [], [])
    return out


def complain(missing: list[str], surplus: list[str], wrong: list[str], unnamed: list[str]) -> None:
    """Raise ConvertError if any of them is there."""
    parts = [
        f"{title} {listed(names)}"
        for title, names in (("missing:", missing), ("of another shape:", wrong), ("surplus:", surplus), ("", unnamed))
        if names
    ]
    if parts:
        raise ConvertError(f"The tensors do not fit the config. {'; '.join(parts)}.".replace("  ", " "))


def listed(names: list[str]) -> str:
    """The first names and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Let these be the model's parameters: nothing is copied, and a shared one stays shared."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    for names in groups.values():
        if names[0] not in tensors:
            continue
        parameter = nn.Parameter(tensors[names[0]])
        for name in names:
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, parameter)
    for name, _ in model.named_buffers():
        if name in tensors:
            path, _, leaf = name.rpartition(".")
            model.get_submodule(path).register_buffer(leaf, tensors[name])
