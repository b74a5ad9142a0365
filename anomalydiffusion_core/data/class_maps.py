"""Several defect types in one mask: class maps, whose values say which pixel is which type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import DatasetError, InputError
from .formats.described import Described, Labelled, MaskFile
from .mask_files import inspect_mask


def divide_class_maps(found: Described, classes: Mapping[str, Sequence[str]]) -> None:
    """Give each type its values of the masks, in place.

    A type that is a folder reads these values of its masks. One that is none takes from every other folder the images
    whose mask holds its values; such a folder is then no type of its own.

    Raises:
        InputError: a type that nothing is found for, or masks that are no images.
    """
    if not classes:
        return
    others = [name for name in found.pairs if name not in classes]
    for name in (name for name in classes if name in found.pairs):
        found.pairs[name] = [_chosen(one, classes[name]) for one in found.pairs[name]]
    wanted = [name for name in classes if name not in found.pairs]
    if not wanted:
        return
    made: dict[str, list[Labelled]] = {name: [] for name in wanted}
    used: dict[str, int] = {}
    for folder in others:
        for one in found.pairs[folder]:
            held = _held_values(one, found)
            for name in wanted:
                if held & set(classes[name]):
                    label = one.name if len(others) == 1 else f"{folder} {one.name}"
                    made[name].append(_chosen(one._replace(name=label), classes[name]))
                    used[folder] = used.get(folder, 0) + 1
    empty = [f"{name}={'+'.join(classes[name])}" for name, pairs in made.items() if not pairs]
    if empty:
        known = ", ".join(found.types) or "none"
        raise InputError(f"mask_values: no mask holds {', '.join(empty)}. Folders of defects: {known}.")
    for folder in used:
        counts = ", ".join(f"{len(made[name])} {name}" for name in wanted)
        found.notice(f"{folder} holds class maps and is divided into {counts}")
        del found.pairs[folder]
        found.names = [name for name in found.names if name != folder]
        found.problems = [("" if defect == folder else defect, text) for defect, text in found.problems]
    found.names += wanted
    found.pairs |= made


def _chosen(one: Labelled, values: Sequence[str]) -> Labelled:
    if not isinstance(one.mask, MaskFile):
        raise InputError(
            f"mask_values: {one.mask.files[0]} is no class map, its regions have names. Leave mask_values empty."
        )
    return one._replace(mask=MaskFile(one.mask.path, tuple(values)))


def _held_values(one: Labelled, found: Described) -> set[str]:
    path: Path = one.mask.files[0]
    if not isinstance(one.mask, MaskFile):
        return set()
    try:
        return {value for value, _ in inspect_mask(path).values}
    except DatasetError as error:
        found.problem(str(error))
        return set()
