"""A feature store from beginning to end: models, text, one pass, store; in one process or in shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer

from tc_adapters_lens.cli.feature_shards import Shard, load_shard, remove_shards, save_shard
from tc_adapters_lens.cli.of_run import load_named_pair
from tc_adapters_lens.cli.text import named_text, require_fitting
from tc_adapters_lens.errors import ConfigError, DataError, FeatureStoreError, did_you_mean
from tc_adapters_lens.evaluation.record import versions
from tc_adapters_lens.features.collect import Collector, Keeping, collect
from tc_adapters_lens.features.promoted import promoted_tokens
from tc_adapters_lens.features.records import LayerFeatures, ModelKind, StoreInfo, TokenEffects
from tc_adapters_lens.features.store import FeatureStore
from tc_adapters_lens.features.store_files import LABELS, is_feature_store, write_store
from tc_adapters_lens.features.text import Text, TextBatch
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.diff_transformer import HookedDiffTransformer
from tc_adapters_lens.models.pair import load_base
from tc_adapters_lens.models.pair_info import PairInfo
from tc_adapters_lens.models.progress import Progress
from tc_adapters_lens.models.vocabulary import Vocabulary
from tc_adapters_lens.training.config import DataConfig
from tc_adapters_lens.training.labels import LabelledText, load_labelled

ADAPTER_HOOK, NEURON_HOOK, BASE_NEURON_HOOK = "mlp.hook_delta.hook_sae_acts_post", "mlp.hook_post", "mlp.base.hook_post"
DEFAULT_HOOKS: dict[ModelKind, str] = {"replacement": ADAPTER_HOOK, "target": NEURON_HOOK, "base": NEURON_HOOK}


@dataclass(frozen=True)
class Settings:
    """Whose features to find, in what.

    base, target, base_revision, target_revision: the pair, as `load_pair` takes it.
    adapters: directory or hub id; not needed for neurons.
    data: the text; path "toy" is the built-in pair's evaluation sequences.
    model: whose units: the replacement model's adapter features, or neurons of target or base.
    hook: where in a layer its units are, such as "mlp.hook_post"; None: as in DEFAULT_HOOKS.
    group_by: a column of the dataset.
    keeping: which examples to keep.
    batch_size: sequences in one forward pass.
    allow_other_pair, allow_tokenizer_mismatch: as `AdapterSet.load`, `load_pair`.
    """

    base: str
    target: str
    adapters: str | None
    data: DataConfig
    base_revision: str | None = None
    target_revision: str | None = None
    model: ModelKind = "replacement"
    hook: str | None = None
    group_by: str | None = None
    keeping: Keeping = field(default_factory=Keeping)
    batch_size: int = 8
    allow_other_pair: bool = False
    allow_tokenizer_mismatch: bool = False


def find_features(
    settings: Settings,
    out: Path,
    *,
    shard: Shard | None = None,
    merge: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    pair: HookedDiffTransformer | None = None,
) -> FeatureStore | None:
    """Make a store, going on where an earlier call was interrupted.

    Args:
        settings: whose features, in what.
        out: the store's directory.
        shard: read this part of the text only, and keep what is found beside `out` until it is merged.
        merge: read nothing, and make the store of so many shards.
        pair: the pair, already loaded.
    Returns:
        The store; None for a shard.
    Raises:
        AdapterLensError: whatever is wrong with models, adapters, text, shards or `out`; one line.
    """
    require_free(out)
    pair = pair or load_named_pair(settings, dtype, device)
    device = pair.W_E.device
    source = _source(settings, pair)
    labelled = load_labelled(
        named_text(settings.data), pair.tokenizer, pair.cfg.d_vocab, pair.cfg.n_ctx, settings.group_by
    )
    require_fitting(settings.data, labelled.report, pair)
    text = as_text(labelled)
    with source.attached:
        n_features = _n_features(source)
        key = _key(settings, source, labelled, n_features, pair.pair)
        collector = Collector(len(source.hooks), n_features, text, settings.keeping, device)
        if merge is None:
            _read(settings, source, text, collector, out, shard or Shard(0, 1), key)
        else:
            other = Collector(len(source.hooks), n_features, text, settings.keeping, device)
            for part in range(merge):
                load_shard(out, Shard(part, merge), key, other)
                collector.merge(other)
    if shard is not None:
        save_shard(out, shard, key, collector)
        return None
    if not collector.any_active:
        raise DataError(
            f"A unit must be active somewhere. Got none at {settings.hook or DEFAULT_HOOKS[settings.model]} over "
            f"{text.n_counted:,} positions of {settings.data.path}: are the adapters trained?"
        )
    vocabulary = _vocabulary(pair)
    info = _info(settings, source, labelled, text, collector, pair.pair)
    layers = _layers(source, collector, vocabulary)
    write_store(out, info, layers, text, collector.windows, vocabulary)
    remove_shards(out)
    return FeatureStore.open(out)


def require_free(out: Path) -> None:
    """Raises FeatureStoreError: what stands at `out` is not a store, or one whose labels would be lost."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_feature_store(out):
        raise FeatureStoreError(f"--out must be a new directory, or a feature store to replace. Got {out}.")
    if (out / LABELS).is_dir() and any((out / LABELS).iterdir()):
        raise FeatureStoreError(
            f"{out} has labels, which would be lost. Name another place with --out, or delete {out / LABELS}."
        )


class _Source(NamedTuple):
    """What is run and read.

    model: with `attached` entered, in the state to be read.
    hooks: each layer's.
    directions: per layer what a unit's activation is multiplied with, `[n_features d_model]`; None where unknown.
    fingerprint: of the adapters, where there are any.
    """

    model: HookedTransformer
    attached: AbstractContextManager[Any]
    hooks: list[str]
    directions: Sequence[Tensor] | None
    fingerprint: str | None


def _source(settings: Settings, pair: HookedDiffTransformer) -> _Source:
    part = re.sub(r"^blocks\.(\d+|\{layer\})\.", "", settings.hook or DEFAULT_HOOKS[settings.model])
    hooks = [f"blocks.{layer}.{part}" for layer in range(pair.cfg.n_layers)]
    model: HookedTransformer = pair
    attached: AbstractContextManager[Any] = nullcontext()
    directions = adapters = None
    if settings.model == "replacement":
        assert settings.adapters is not None, "the command line has seen to it"
        adapters = AdapterSet.from_pretrained(
            settings.adapters, device=pair.W_E.device, pair=pair.pair, allow_other_pair=settings.allow_other_pair
        )
        attached = pair.adapters(adapters)
    elif settings.model == "base":
        place = {"dtype": pair.cfg.dtype, "device": pair.W_E.device}
        model = load_base(settings.base, base_revision=settings.base_revision, pair=pair, **place)
    mlps: list[Any] = [block.mlp for block in model.blocks]  # type: ignore[union-attr]
    if part == ADAPTER_HOOK and adapters is not None:
        directions = [adapter.W_dec for adapter in adapters.values()]
    elif part == NEURON_HOOK:
        directions = [mlp.W_out for mlp in mlps]
    elif part == BASE_NEURON_HOOK and model is pair:
        directions = [mlp.base.W_out for mlp in mlps]
    return _Source(model, attached, hooks, directions, None if adapters is None else adapters.fingerprint())


def _n_features(source: _Source) -> int:
    """Units of a layer, seen by running two tokens."""
    unknown = [name for name in source.hooks if name not in source.model.hook_dict]
    if unknown:
        nearest = did_you_mean(unknown[0], source.model.hook_dict)
        raise ConfigError(f"--hook must name a hook point of every layer. Got {unknown[0]}, which is none.{nearest}")
    shapes: list[tuple[int, ...]] = []
    reading: list[Any] = [(name, lambda acts, hook: shapes.append(tuple(acts.shape))) for name in source.hooks]
    with torch.no_grad(), source.model.hooks(fwd_hooks=reading):
        tokens = torch.zeros(1, 2, dtype=torch.int64, device=source.model.W_E.device)
        source.model(tokens, return_type=None, stop_at_layer=source.model.cfg.n_layers)
    if len(shapes) != len(source.hooks) or any(len(shape) != 3 or shape != shapes[0] for shape in shapes):
        raise ConfigError(
            "--hook must give activations [batch pos units] once in every layer, as many units in each. "
            f"Got {shapes[0] if shapes else 'none'} at {source.hooks[0]}."
        )
    return shapes[0][-1]


def as_text(labelled: LabelledText) -> Text:
    """What a dataset became, as features are found in."""
    sequences = labelled.sequences
    return Text(
        tokens=sequences.tokens,
        offsets=sequences.offsets,
        counted=sequences.mask,
        regions=labelled.regions,
        template=labelled.template,
        groups=labelled.groups,
        region_names=labelled.region_names,
        template_names=labelled.template_names,
        group_names=labelled.group_names,
    )


def _read(
    settings: Settings, source: _Source, text: Text, collector: Collector, out: Path, shard: Shard, key: str
) -> None:
    plan = text.batches(settings.batch_size)[shard.index :: shard.n]
    lengths = np.diff(text.offsets)
    file = out.with_name(f".{out.name}-{shard}.partial.safetensors")
    bar = tqdm(total=int(sum(lengths[chosen].sum() for chosen in plan)), desc="reading", unit=" tokens", disable=None)

    def batches() -> Iterator[TextBatch]:
        for chosen in plan:
            yield text.batch(chosen, source.model.W_E.device)
            bar.update(int(lengths[chosen].sum()))

    with bar:
        for _ in collect(source.model, source.hooks, Progress(file, key).over(batches(), collector), collector):
            pass


def _layers(source: _Source, collector: Collector, vocabulary: Vocabulary) -> Iterator[LayerFeatures]:
    n_known = vocabulary.n_known or None
    for layer in tqdm(range(len(source.hooks)), desc="writing", unit=" layers", disable=None, delay=2):
        if source.directions is None:
            nothing = TokenEffects(
                np.zeros((collector.n_features, 0), np.int32), np.zeros((collector.n_features, 0), np.float32)
            )
            yield collector.features(layer, nothing, nothing)
        else:
            promoted, inhibited = promoted_tokens(source.model, layer, source.directions[layer], n_known=n_known)
            yield collector.features(layer, promoted, inhibited)


def _vocabulary(pair: HookedDiffTransformer) -> Vocabulary:
    if pair.tokenizer is None:
        return Vocabulary(np.zeros(0, np.uint8), np.zeros(pair.cfg.d_vocab + 1, np.int64))
    return Vocabulary.of(pair.tokenizer, pair.cfg.d_vocab)


def _info(
    settings: Settings, source: _Source, labelled: LabelledText, text: Text, collector: Collector, pair: PairInfo
) -> StoreInfo:
    region_tokens, group_tokens, template_tokens = text.counts()
    return StoreInfo(
        model=settings.model,
        hook=re.sub(r"^blocks\.0\.", "blocks.{layer}.", source.hooks[0]),
        n_layers=len(source.hooks),
        n_features=collector.n_features,
        k=settings.keeping.k,
        before=settings.keeping.before,
        after=settings.keeping.after,
        n_windows=len(collector.windows),
        n_sequences=len(text),
        n_tokens=len(text.tokens),
        n_counted=text.n_counted,
        regions=text.region_names,
        region_tokens=region_tokens,
        group_by=settings.group_by,
        groups=text.group_names,
        group_tokens=group_tokens,
        template=text.template_names,
        template_tokens=template_tokens,
        pair=pair.to_dict(),
        adapters=None if source.fingerprint is None else settings.adapters,
        adapters_fingerprint=source.fingerprint,
        provenance={
            "source": settings.data.path,
            "tokens_fingerprint": labelled.sequences.fingerprint(),
            "positions": settings.data.loss_on,
            "seed": settings.keeping.seed,
            "batch_size": settings.batch_size,
            "dtype": str(source.model.cfg.dtype),
            "data": labelled.report.to_dict(),
            "versions": versions(),
        },
    )


def _key(settings: Settings, source: _Source, labelled: LabelledText, n_features: int, pair: PairInfo) -> str:
    """Says what a collector has collected, of what, up to which part."""
    return json.dumps(
        {
            "model": settings.model,
            "hooks": source.hooks,
            "n_features": n_features,
            "pair": [pair.base_fingerprint, pair.target_fingerprint],
            "dtype": str(source.model.cfg.dtype),
            "adapters": source.fingerprint,
            "text": labelled.sequences.fingerprint(),
            "labels": [settings.group_by, _labels_digest(labelled)],
            "keeping": asdict(settings.keeping),
            "batch_size": settings.batch_size,
        },
        sort_keys=True,
    )


def _labels_digest(labelled: LabelledText) -> str:
    digest = xxhash.xxh3_128()
    digest.update(json.dumps([labelled.region_names, labelled.template_names, labelled.group_names]).encode())
    for labels in (labelled.regions, labelled.template, labelled.groups):
        if labels is not None:
            digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
