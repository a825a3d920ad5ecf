"""What users pass as ids, turned into the one batch type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_embed.errors import DataError
from recsys_embed.features import Feature
from recsys_embed.ids import Ids, offsets_of


def as_ids(ids: Any, features: Sequence[Feature]) -> Ids:
    """A batch in layer order; tensors are shared with the caller and never written to.

    Raises:
        DataError: a shape, a dtype or a feature that does not fit.
    """
    if isinstance(ids, Ids):
        return _checked(ids, features)
    if isinstance(ids, Tensor):
        return _checked(Ids(ids, len(features)), features)
    if isinstance(ids, Mapping):
        return _checked(_from_mapping(ids, features), features)
    if isinstance(ids, tuple) and len(ids) in (2, 3):
        return _checked(Ids(ids[0], len(features), *ids[1:]), features)
    if all(hasattr(ids, name) for name in ("keys", "values", "offsets", "weights_or_none")):
        return _from_keyed_jagged(ids, features)
    raise DataError(f"cannot read ids from a {type(ids).__name__}")


def _checked(ids: Ids, features: Sequence[Feature]) -> Ids:
    for what, tensor in (("ids", ids.values), ("offsets", ids.offsets), ("weights", ids.weights)):
        if tensor is not None and not isinstance(tensor, Tensor):
            raise DataError(f"{what} are a tensor, got a {type(tensor).__name__}")
    for what, tensor in (("ids", ids.values), ("offsets", ids.offsets)):
        if tensor is not None and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            raise DataError(f"{what} are integers, got {tensor.dtype}")
    if ids.features != len(features):
        raise DataError(f"the layer has {len(features)} features, the batch {ids.features}")
    offsets = ids.offsets
    if offsets is None:
        if ids.values.dim() != 2 or len(ids.values) != len(features):
            raise DataError(f"ids are [F, B] with F = {len(features)}, got {list(ids.values.shape)}")
        return ids
    count = ids.values.numel()
    if ids.values.dim() != 1 or offsets.dim() != 1 or not len(offsets) or (offsets.numel() - 1) % len(features):
        raise DataError(
            f"jagged ids are values [N] and offsets [F*B + 1] with F = {len(features)}, got {list(ids.values.shape)} "
            f"and {list(offsets.shape)}"
        )
    if int(offsets[0]) != 0 or int(offsets[-1]) != count or bool((offsets.diff() < 0).any()):
        raise _bad_offsets(offsets, count, features)
    if ids.weights is not None and ids.weights.shape != ids.values.shape:
        raise DataError(f"weights are [N] = {list(ids.values.shape)}, got {list(ids.weights.shape)}")
    return ids


def _bad_offsets(offsets: Tensor, count: int, features: Sequence[Feature]) -> DataError:
    """The error that names the first bag whose offsets are impossible."""
    rule, batch = f"offsets rise from 0 to the number of values, {count}", (offsets.numel() - 1) // len(features)
    lengths = offsets.diff()
    if batch == 0:
        return DataError(f"{rule}; got {offsets.tolist()}")
    if int(offsets[0]) != 0:
        bag, what, value = 0, "they begin at another number", int(offsets[0])
    elif bool((lengths < 0).any()):
        bag = int((lengths < 0).nonzero()[0])
        what, value = "this bag has a negative length", int(lengths[bag])
    else:
        bag, what, value = offsets.numel() - 2, "they end at another number", int(offsets[-1])
    feature, sample = divmod(bag, batch)
    return DataError(f"{rule}; {what}", column=features[feature].name, row=sample, value=value)


def _from_mapping(ids: Mapping[str, Any], features: Sequence[Feature]) -> Ids:
    names = [feature.name for feature in features]
    for name in names:
        if name not in ids:
            raise DataError("no ids for this feature", column=name)
    for name in ids:
        if name not in names:
            raise DataError(f"the layer has no such feature; it has {', '.join(names)}", column=name)
    given = [ids[name] for name in names]
    if all(isinstance(one, Tensor) and one.dim() == 1 for one in given):
        lengths = {name: one.numel() for name, one in zip(names, given, strict=True)}
        for name, length in lengths.items():
            if length != lengths[names[0]]:
                raise DataError(f"{length} ids, but feature {names[0]!r} has {lengths[names[0]]}", column=name)
        return Ids(torch.stack(given), len(features))
    values: list[Tensor] = []
    lengths_: list[Tensor] = []
    weights: list[Tensor | None] = []
    for feature, one in zip(features, given, strict=True):
        name = feature.name
        if isinstance(one, Tensor):
            if one.dim() not in (1, 2):
                raise DataError(f"ids are [B], or [B, L] where multi-valued, got {list(one.shape)}", column=name)
            values.append(one.reshape(-1))
            width = 1 if one.dim() == 1 else one.shape[1]
            lengths_.append(torch.full((one.shape[0],), width, device=one.device))
            weights.append(None)
        elif isinstance(one, tuple) and len(one) in (2, 3):
            part = _checked(Ids(one[0], 1, *one[1:]), [feature])
            assert part.offsets is not None
            values.append(part.values)
            lengths_.append(part.offsets.diff().to(torch.int64))
            weights.append(part.weights)
        else:
            raise DataError(f"cannot read ids from a {type(one).__name__}", column=name)
    for name, one in zip(names, lengths_, strict=True):
        if one.numel() != lengths_[0].numel():
            raise DataError(f"{one.numel()} bags, but feature {names[0]!r} has {lengths_[0].numel()}", column=name)
    offsets = offsets_of(torch.cat(lengths_))
    merged = None
    if any(one is not None for one in weights):
        merged = torch.cat(
            [torch.ones(v.numel(), device=v.device) if w is None else w for v, w in zip(values, weights, strict=True)]
        )
    return Ids(torch.cat(values), len(features), offsets, merged)


def _from_keyed_jagged(ids: Any, features: Sequence[Feature]) -> Ids:
    """A KeyedJaggedTensor, by its attributes: TorchRec need not be there."""
    keys = list(ids.keys())
    for feature in features:
        if feature.name not in keys:
            raise DataError("the KeyedJaggedTensor has no such key", column=feature.name)
        if keys.count(feature.name) > 1:
            raise DataError("the KeyedJaggedTensor has this key twice", column=feature.name)
    by_name = {feature.name: feature for feature in features}
    stated = [by_name.get(key, Feature(key, 1)) for key in keys]
    whole = _checked(Ids(ids.values(), len(keys), ids.offsets(), ids.weights_or_none()), stated)
    return whole.select([keys.index(feature.name) for feature in features])
