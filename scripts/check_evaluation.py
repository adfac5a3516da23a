"""Computes every figure of an evaluation again, from two plain Hugging Face models and NumPy, and compares.

    python scripts/check_evaluation.py RUN --tokens FILE --base DIR --target DIR

No line of tc_adapters_lens is used: models are put together from modules of the two Hugging Face models, an adapter is
two lines of arithmetic, and all that follows the logits is NumPy in float64. One row per figure is printed: theirs,
ours, relative difference; figures below 0.01 are compared as if they were 0.01. Where a model's two likeliest tokens
are within 1e-5 nats of each other, rounding decides which comes first: top-1 errors may differ by so many positions.
The program ends with 1 if a figure differs by more, is missing or is not known here, or if an interval is another.

Definitions. Two models are compared AT token t by their distributions of token t+1. Tokens count that belong to the
response (or all, where "positions" says so). The target is sure where its largest probability is above 0.8. h is
the residual stream after a layer, before the final norm. Every figure is made of ratios of sums over sequences, so
intervals come from drawing sequences again, shifted so that the draws' mean is the figure, and end at 0.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

SURE = 0.8
SMALLEST = 0.01  # smaller figures are compared as if they were this large
TIE = 1e-5  # nats between two log-probabilities, which float32 keeps to about 1e-6
REPLICATES, SEED = 2_000, 20_260_101
INTERVAL_TOLERANCE = 0.15  # of ours: widths of two such bootstraps are 4% apart (one sigma), of 10 sequences more
WITH_INTERVALS = re.compile(r"(.*\.)?(kl|top1_error|cross_entropy|(nmse|l0)(_per_layer\.\d+)?)|(.*\.)?partial_kl\..*")
NOT_CHECKED = {  # figures that may be known here or not -> why
    r"models\.(skyline|norm_refit)\..*|skyline_sweep\..*": "there are no weights in RUN/baselines",
    r"(models\.)?no_bridging\..*": "there are no adapters in RUN/baselines/no_bridging",
}

PARTS = ("embedding", "attention", "norms", "MLP", "unembedding")
ALL, NONE, MLP = frozenset(PARTS), frozenset(), frozenset({"MLP"})
ORDERS = {"cumulative": PARTS, "mlps_last": ("embedding", "attention", "norms", "unembedding", "MLP")}
UNIT = re.compile(r"\w+\.layers\.\d+\.\w+|\w+\.(?!layers$)\w+|lm_head|embed_out")  # modules that are exchanged whole
WORDS = {"norm": "norms", "lm_head": "unembedding", "embed_out": "unembedding", "mlp": "MLP", "attn": "attention"}
WORDS |= {"attention": "attention", "rotary": "attention", "emb": "embedding"}  # the first found in its name decides

GATED = {"W_gate": "gate_proj.weight", "W_in": "up_proj.weight", "W_out": "down_proj.weight"}  # dense weights' names
PLAIN = {"W_in": "dense_h_to_4h.weight", "W_out": "dense_4h_to_h.weight"}  # in an MLP without a gate, and its biases
PLAIN |= {"b_in": "dense_h_to_4h.bias", "b_out": "dense_4h_to_h.bias"}
NORMS = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
NORMS_BOTH_SIDES = {"ln1": "input_layernorm", "ln1_post": "post_attention_layernorm"}  # before and after (Gemma 2)
NORMS_BOTH_SIDES |= {"ln2": "pre_feedforward_layernorm", "ln2_post": "post_feedforward_layernorm"}

Sequence = tuple[np.ndarray, np.ndarray]  # token ids, and whether each counts
Adapter = dict[str, Tensor]  # W_enc [d, F], b_enc [F], W_dec [F, d], b_dec [d] of one layer


def read_sequences(path: Path, positions: str, context_size: int, most: int | None, seed: int) -> list[Sequence]:
    """Rows {"input_ids", "prompt_length"}: all, or `most` of them in the order in which the evaluation draws them."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    order = range(len(rows)) if most is None else np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))
    sequences = []
    for index in order:
        ids = np.asarray(rows[index]["input_ids"], dtype=np.int32)[:context_size]
        counted = np.arange(len(ids)) >= (rows[index]["prompt_length"] if positions == "response" else 0)
        if len(ids) > 1 and counted.any():
            sequences.append((ids, counted))
    return sequences[:most]


def fingerprint(sequences: list[Sequence]) -> str:
    """sha256 of where sequences begin and end (int64), ids (int32) and what counts (bool), one after another."""
    offsets = np.cumsum([0, *(len(ids) for ids, _ in sequences)], dtype=np.int64)
    arrays = offsets, *(np.concatenate(column) for column in zip(*sequences, strict=True))
    return "sha256:" + hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def read_adapters(directory: Path, target: Any) -> list[Adapter]:
    layers, like = range(target.config.num_hidden_layers), target.get_input_embeddings().weight
    adapters = [load_file(directory / f"layer_{layer}" / "sae_weights.safetensors") for layer in layers]
    if any(set(adapter) != {"W_enc", "b_enc", "W_dec", "b_dec"} for adapter in adapters):
        raise SystemExit(f"Adapters must hold W_enc, b_enc, W_dec, b_dec. Got others in {directory}.")
    return [{name: tensor.to(like) for name, tensor in adapter.items()} for adapter in adapters]


class Replaced(nn.Module):
    """A base's MLP with an adapter beside it."""

    def __init__(self, mlp: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.mlp, self.adapter = mlp, adapter

    def forward(self, x: Tensor) -> Tensor:
        self.features = torch.relu(x @ self.adapter["W_enc"] + self.adapter["b_enc"])
        return self.mlp(x) + self.features @ self.adapter["W_dec"] + self.adapter["b_dec"]


def part_of(name: str) -> str:
    """Which of PARTS a module is. Norms inside attention, and the rotary embedding, are attention."""
    return next(part for word, part in WORDS.items() if word in name.rsplit(".", 1)[-1])


def assemble(base: Any, target: Any, from_target: Collection[str], mlps: Mapping[int, nn.Module] | None = None) -> Any:
    """A model with the given parts of the target and the base's others, and in some layers the given MLPs."""
    owners = {part: target if part in from_target else base for part in PARTS}
    with torch.device("meta"):  # an empty frame: every module with weights or settings is put in below
        model = AutoModelForCausalLM.from_config(owners["attention"].config, attn_implementation="eager")
    for name in [name for name, _ in model.named_modules() if UNIT.fullmatch(name)]:
        model.set_submodule(name, owners[part_of(name)].get_submodule(name))
    for layer, mlp in (mlps or {}).items():
        model.base_model.layers[layer].mlp = mlp
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    return model.eval()


def dense(base: Any, target: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The hybrid with trained weights of all layers, named blocks.LAYER.mlp.base.W_in, blocks.LAYER.ln1.w, ..."""
    model = copy.deepcopy(assemble(base, target, ALL - MLP))
    gemma = float("gemma" in model.config.model_type)  # whose norms multiply by 1 + weight
    for name, tensor in tensors.items():
        layer, *where, last = name.removeprefix("blocks.").split(".")
        block = model.base_model.layers[int(layer)]
        if where == ["mlp", "base"]:
            param = block.mlp.get_parameter((GATED if hasattr(block.mlp, "gate_proj") else PLAIN)[last])
            tensor = tensor.T if tensor.ndim == 2 else tensor
        else:
            names = NORMS_BOTH_SIDES if hasattr(block, "pre_feedforward_layernorm") else NORMS
            inside = f"self_attn.{where[1]}" if where[0] == "attn" else names[where[0]]
            param = block.get_parameter(f"{inside}.{'weight' if last == 'w' else 'bias'}")
            tensor = tensor - gemma
        param.data.copy_(tensor)
    return model


def partial_layers(n_layers: int) -> dict[str, list[frozenset[int]]]:
    """Which layers are replaced at each point of the three curves of partial replacement."""
    first = [frozenset(range(k)) for k in range(n_layers + 1)]
    last = [first[-1] - layers for layers in reversed(first)]
    return {"first": first, "last": last, "single": [frozenset({layer}) for layer in range(n_layers)]}


def models_needed(
    base: Any, target: Any, sets: Mapping[str, list[Adapter]], weights: Mapping[Any, Any], theirs: Mapping[str, Any]
) -> dict:
    """Every model the evaluation speaks of.

    Keys are ("parts", those of the target, the others being the base's), (name of adapters, layers replaced in the
    target), where "shuffled" are the "replacement" ones moved to other layers, and ("dense", key of the weights).
    """
    mlps = [layer.mlp for layer in base.base_model.layers]
    everywhere = frozenset(range(len(mlps)))
    parts, replaced = {NONE, MLP, ALL - MLP}, {everywhere}
    if theirs["account"]:
        parts |= {frozenset({part}) for part in PARTS} | {ALL - {part} for part in PARTS}
        parts |= {frozenset(order[:k]) for order in ORDERS.values() for k in range(len(PARTS))}
    if theirs["partial_kl"]:
        replaced |= {some for curve in partial_layers(len(mlps)).values() for some in curve if some}

    def replacement(adapters: Mapping[int, Adapter]) -> Any:
        return assemble(base, target, ALL, {layer: Replaced(mlps[layer], own) for layer, own in adapters.items()})

    models: dict[Any, Any] = {("parts", some): assemble(base, target, some) for some in parts}
    models |= {("dense", key): dense(base, target, tensors) for key, tensors in weights.items()}
    for name, adapters in sets.items():
        models |= {(name, some): replacement({layer: adapters[layer] for layer in some}) for some in replaced}
    if "shuffled" in theirs["models"]:
        own = sets["replacement"]
        models["shuffled", everywhere] = replacement({layer: own[of] for layer, of in enumerate(theirs["shuffle"])})
    return models


def run(model: Any, ids: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """log p [n_counted, vocabulary] and the residual stream after every layer [n_counted, d] at counted positions."""
    streams: list[np.ndarray] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        h = output[0] if isinstance(output, tuple) else output
        streams.append(h[0].double().cpu().numpy()[counted])

    hooks = [layer.register_forward_hook(keep) for layer in model.base_model.layers]
    tokens = torch.tensor(ids[None], dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits[0].double().cpu().numpy()[counted]
    for hook in hooks:
        hook.remove()
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), streams


def ties(log_p: np.ndarray) -> np.ndarray:
    """Where the two likeliest tokens are next to equally likely."""
    second, first = np.partition(log_p, -2, axis=-1)[:, -2:].T
    return first - second < TIE


def sequence_sums(
    target: Any, models: Mapping[Any, Any], ids: np.ndarray, counted: np.ndarray
) -> tuple[dict[Any, float], dict[str, np.ndarray]]:
    """All that one sequence adds to the figures, and how often the features of each set fired on it [L, F]."""
    log_p, h = run(target, ids, counted)
    p, tied = np.exp(log_p), ties(log_p)
    sure = p.max(-1) > SURE
    at = np.flatnonzero(counted)
    has_next = at + 1 < len(ids)
    next_ids = ids[at[has_next] + 1]

    def nll(log_q: np.ndarray) -> float:
        return -log_q[has_next, next_ids].sum()

    sums: dict[Any, Any] = {"n": len(at), "n next": has_next.sum(), "n sure": sure.sum(), "n unsure": (~sure).sum()}
    sums |= {"nll": nll(log_p), "entropy": -(p * log_p).sum()}
    fired = {}
    for key, model in models.items():
        (name, layers), (log_q, ours) = key, run(model, ids, counted)
        kl = (p * (log_p - log_q)).sum(-1)
        wrong = log_p.argmax(-1) != log_q.argmax(-1)
        for where, chosen in (("", slice(None)), (" sure", sure), (" unsure", ~sure)):
            sums[key, "kl" + where], sums[key, "wrong" + where] = kl[chosen].sum(), wrong[chosen].sum()
            sums[key, "tied" + where] = (tied | ties(log_q))[chosen].sum()
        sums[key, "nll"] = nll(log_q)
        if name in ("replacement", "no_bridging") and len(layers) == len(h):
            mlps = [layer.mlp for layer in model.base_model.layers]
            features = [mlp.features[0].double().cpu().numpy()[counted] for mlp in mlps]
            norms = [np.linalg.norm(mlp.adapter["W_dec"].double().cpu().numpy(), axis=1) for mlp in mlps]
            sums[key, "l1"] = sum((f @ norm).sum() for f, norm in zip(features, norms, strict=True))
            fired[name] = np.array([(f > 0).sum(0) for f in features])
            for layer, (before, after) in enumerate(zip(h, ours, strict=True)):
                sums[key, "error", layer], sums[key, "size", layer] = ((after - before) ** 2).sum(), (before**2).sum()
                sums[key, "active", layer] = fired[name][layer].sum()
    return {key: float(value) for key, value in sums.items()}, fired


def model_keys(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Name of a model in the evaluation -> its key in the sums. The skyline is the learning rate of least KL."""
    sweep = theirs.get("skyline_sweep") or [{"lr": None, "kl": {"value": 0.0}}]
    best = min(sweep, key=lambda swept: swept["kl"]["value"])["lr"]
    keys: dict[str, Any] = {"norm_refit": ("dense", "norm_refit"), "skyline": ("dense", best)}
    keys |= {"base": ("parts", NONE), "reverse": ("parts", MLP), "hybrid": ("parts", ALL - MLP)}
    return keys | {
        name: (name, frozenset(range(theirs["n_layers"]))) for name in ("replacement", "shuffled", "no_bridging")
    }


def figures(total: Mapping[Any, Any], partial: Mapping[Any, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that follows from sums over sequences, laid out as in evaluation.json.

    total: sums over all sequences; each may be an array, one value per replicate. partial: the same over those
    sequences on which the curves of partial replacement were measured.
    """
    n, every, keys = total["n"], range(theirs["n_layers"]), model_keys(theirs)

    def mean(name: str, figure: str, where: str = "") -> Any:
        return total[keys[name], figure + where] / total["n" + where]

    def part_kl(*parts: str) -> Any:
        return 0 * n if set(parts) == ALL else total[("parts", frozenset(parts)), "kl"] / n

    def agreement(name: str) -> dict[str, Any]:
        """KL and top-1 error, everywhere and where the target is sure and unsure; cross-entropy."""
        wheres = {"": "", "sure": " sure", "unsure": " unsure"}
        two = {at: {"kl": mean(name, "kl", w), "top1_error": mean(name, "wrong", w)} for at, w in wheres.items()}
        own, hybrid = (total[keys[which], "nll"] / total["n next"] for which in (name, "hybrid"))
        recovered = (hybrid - own) / (hybrid - target["cross_entropy"])
        return two.pop("") | two | {"cross_entropy": own, "loss_recovered": recovered}

    def internal(name: str) -> dict[str, Any]:
        key = keys[name]
        nmse = [total[key, "error", layer] / total[key, "size", layer] for layer in every]
        l0 = [total[key, "active", layer] / n for layer in every]
        found = {"nmse": sum(nmse) / len(nmse), "nmse_per_layer": nmse, "l0": sum(l0) / len(l0), "l0_per_layer": l0}
        if theirs["partial_kl"]:
            for curve, points in partial_layers(len(every)).items():
                values = [partial[(name, some), "kl"] / partial["n"] if some else 0 * n for some in points]
                found[f"partial_kl.{curve}"] = values
        return found

    def swap(parts: Collection[str]) -> dict[str, Any]:
        return {"kl": part_kl(*parts), "recovered": part_kl() - part_kl(*parts)}

    def steps(order: tuple[str, ...]) -> list[dict[str, Any]]:
        pairs = itertools.pairwise(part_kl(*order[:k]) for k in range(len(order) + 1))
        return [{"kl": after, "recovered": before - after} for before, after in pairs]

    target = {"cross_entropy": total["nll"] / total["n next"], "entropy": total["entropy"] / n}
    target["sure_share"] = total["n sure"] / n
    names = dict.fromkeys(("hybrid", "replacement", *theirs["models"]))
    measured = [name for name in names if (keys.get(name), "kl") in total]
    found: dict[str, Any] = {"target": target, "models": {name: agreement(name) for name in measured}}
    found |= internal("replacement") | {"l1": mean("replacement", "l1")}
    swept = [("dense", one["lr"]) for one in theirs["skyline_sweep"]]
    if swept and all((key, "kl") in total for key in swept):
        found["skyline_sweep"] = [{"kl": total[k, "kl"] / n, "top1_error": total[k, "wrong"] / n} for k in swept]
    if "no_bridging" in measured:
        found["no_bridging"] = internal("no_bridging")
    if theirs["account"]:
        left = mean("replacement", "kl")
        found["account"] = {
            "alone": {part: swap({part}) for part in PARTS},
            "without": {part: swap(ALL - {part}) for part in PARTS},
            **{name: steps(order) for name, order in ORDERS.items()},
            "adapters": {"recovered": mean("hybrid", "kl") - left, "left": left},
        }
    return found


def feature_figures(fired: np.ndarray, n_tokens: float, edges: list[float]) -> dict[str, Any]:
    """Dead features, and features per bin of firing frequency; the first bin holds those that never fired."""
    bins = np.clip(np.searchsorted(edges, fired / n_tokens, side="right") - 1, 1, len(edges) - 2)
    counts = [np.bincount(layer, minlength=len(edges) - 1).tolist() for layer in np.where(fired == 0, 0, bins)]
    dead = (fired == 0).sum(1).tolist()
    return {"frequency": {"per_layer": counts}, "dead": sum(dead), "dead_per_layer": dead}


def flat(values: Any, path: str = "") -> dict[str, Any]:
    """Nested figures by their path: "models.hybrid.kl", "nmse_per_layer.0". An estimate of theirs is one leaf."""
    if isinstance(values, list):
        values = dict(enumerate(values))
    if not isinstance(values, Mapping) or "value" in values:
        return {path.removeprefix("."): values}
    return {key: leaf for name, part in values.items() for key, leaf in flat(part, f"{path}.{name}").items()}


def measure(
    base: Any,
    target: Any,
    sets: Mapping[str, list[Adapter]],
    weights: Mapping[Any, Mapping[str, Tensor]],
    sequences: list[Sequence],
    theirs: Mapping[str, Any],
) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, float]]:
    """Our figures by path, the 95% intervals (low, high) that are compared, and by how much ties may move a figure."""
    models = models_needed(base, target, sets, weights, theirs)
    sums, fired = zip(*(sequence_sums(target, models, *sequence) for sequence in sequences), strict=True)
    columns = {key: np.array([of_one[key] for of_one in sums]) for key in sums[0]}
    n, n_partial = len(sequences), theirs["partial_sequences"] if theirs["partial_kl"] else 0
    drawn = np.random.Generator(np.random.PCG64(theirs["seed"])).choice(n, n_partial, replace=False)  # as theirs

    def from_weights(weights: np.ndarray) -> dict[str, Any]:
        """weights: how often each sequence counts [..., n_sequences]."""
        total = {key: weights @ column for key, column in columns.items()}
        partial = {key: weights[..., drawn] @ column[drawn] for key, column in columns.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            return flat(figures(total, partial, theirs))

    values = from_weights(np.ones(n))
    draws = from_weights(np.random.default_rng(SEED).multinomial(n, np.ones(n) / n, size=REPLICATES).astype(float))
    intervals = {}
    for path in filter(WITH_INTERVALS.fullmatch, values):
        low, high = np.percentile(draws[path], (2.5, 97.5)) + values[path] - draws[path].mean()
        intervals[path] = (max(float(low), 0.0), float(high))
    for name in sets:
        times = np.sum([of_one[name] for of_one in fired], axis=0)
        found = feature_figures(times, columns["n"].sum(), theirs["frequency"]["edges"])
        values |= flat(found) if name == "replacement" else {f"{name}.dead": found["dead"]}
    moves = {}
    for path in values:
        if match := re.fullmatch(r"(models|skyline_sweep)\.(\w+?)(?:\.(sure|unsure))?\.top1_error", path):
            which, name, where = match[1], match[2], f" {match[3]}" if match[3] else ""
            swept = which == "skyline_sweep"
            key = ("dense", theirs[which][int(name)]["lr"]) if swept else model_keys(theirs)[name]
            moves[path] = float(columns[key, "tied" + where].sum() / max(columns["n" + where].sum(), 1))
    return {path: float(value) for path, value in values.items()}, intervals, moves


def unequal_facts(theirs: Mapping[str, Any], sequences: list[Sequence], adapters: list[Adapter]) -> list[str]:
    """What must be equal to the letter and is not."""
    ours: dict[str, Any] = {"n_sequences": len(sequences), "n_tokens": sum(int(c.sum()) for _, c in sequences)}
    ours |= {"n_layers": len(adapters), "n_features": adapters[0]["W_enc"].shape[1]}
    ours["tokens_fingerprint"] = fingerprint(sequences)
    found = {name: theirs[name] for name in ours}
    if theirs["account"]:
        ours |= {name: list(order) for name, order in ORDERS.items()}
        found |= {name: [step["added"] for step in theirs["account"][name]] for name in ORDERS}
    return [f"{name}: theirs {found[name]}, ours {value}" for name, value in ours.items() if found[name] != value]


def compare(
    theirs: Mapping[str, Any],
    ours: Mapping[str, float],
    tolerance: float,
    moves: Mapping[str, float],
) -> int:
    """Prints a row per figure; returns how many differ, are missing or are not known here.

    moves: path -> by how much a figure may differ besides.
    """
    estimates = {path: leaf["value"] for path, leaf in flat(theirs).items() if isinstance(leaf, Mapping)}
    skipped = {pattern: why for pattern, why in NOT_CHECKED.items() if not any(re.fullmatch(pattern, p) for p in ours)}
    failed, largest = 0, (0.0, "none")
    print(f"{'figure':44s} {'theirs':>14s} {'ours':>14s} difference")
    for path in dict.fromkeys([*ours, *estimates]):
        value, mine = estimates.get(path, math.nan), ours.get(path, math.nan)
        why = next((why for pattern, why in skipped.items() if re.fullmatch(pattern, path)), None)
        if math.isnan(value) and math.isnan(mine):
            print(f"{path:44s} {'null':>14s} {'undefined':>14s}")
        elif path not in ours and why:
            print(f"{path:44s} {value:14.8g} not checked: {why}")
        else:
            difference = abs(value - mine) / max(abs(mine), SMALLEST)
            tied = moves.get(path, 0.0) / max(abs(mine), SMALLEST)
            differs = not difference <= tolerance + tied
            failed += differs
            largest = max(largest, (difference, path))
            note = "  DIFFERS" if differs else f"  ties: up to {tied:.1e}" if difference > tolerance else ""
            print(f"{path:44s} {value:14.8g} {mine:14.8g} {difference:10.1e}{note}")
    print(f"{len(ours)} figures, {failed} differ; largest difference {largest[0]:.1e} ({largest[1]})")
    return failed


def compare_intervals(theirs: Mapping[str, Any], ours: Mapping[str, tuple[float, float]]) -> int:
    """Prints the intervals that differ in width or centre; returns how many do."""
    if not theirs["replicates"]:
        print("intervals: not checked, the evaluation has none")
        return 0
    failed = compared = 0
    estimates = {path: leaf for path, leaf in flat(theirs).items() if isinstance(leaf, Mapping)}
    for path, (low, high) in [(path, ends) for path, ends in ours.items() if ends[1] > ends[0]]:
        bounds = [math.nan if end is None else end for end in map(estimates.get(path, {}).get, ("low", "high"))]
        wider, moved = (bounds[1] - bounds[0]) / (high - low) - 1, (sum(bounds) - low - high) / 2 / (high - low)
        compared += 1
        if not max(abs(wider), abs(moved)) <= INTERVAL_TOLERANCE:
            failed += 1
            print(f"{path}: theirs {bounds}, ours [{low}, {high}]; width {wider:+.0%}, centre {moved:+.0%}  DIFFERS")
    print(f"{compared} intervals compared, {failed} differ; not checked: those of {len(estimates) - compared} figures")
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, metavar="RUN_OR_EVALUATION_JSON")
    parser.add_argument("--tokens", type=Path, required=True, metavar="FILE", help="jsonl: input_ids, prompt_length")
    parser.add_argument("--base", metavar="MODEL", help="if what evaluation.json names cannot be opened from here")
    parser.add_argument("--target", metavar="MODEL", help="the same")
    parser.add_argument("--max-sequences", type=int, metavar="N", help="as `tc-adapters evaluate` was given it")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative; 1e-4 suits evaluation in float32")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="of the two models")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    path = args.evaluation / "evaluation.json" if args.evaluation.is_dir() else args.evaluation
    theirs = json.loads(path.read_text(encoding="utf-8"))
    options: dict[str, Any] = {"dtype": getattr(torch, args.dtype), "attn_implementation": "eager"}

    def read_model(role: str, given: str | None) -> Any:
        name, revision = (given, None) if given else [theirs["pair"][f"{role}_{key}"] for key in ("name", "revision")]
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, use_safetensors=True, **options)
        return model.to(args.device).eval()

    base, target = read_model("base", args.base), read_model("target", args.target)
    own, unbridged = path.parent / "adapters", path.parent / "baselines/no_bridging/adapters"
    places = {"replacement": own if own.is_dir() else Path(theirs["adapters"])}
    places |= {"no_bridging": unbridged} if theirs["no_bridging"] and unbridged.is_dir() else {}
    print(*(f"{name}: adapters in {place}" for name, place in places.items()), sep="\n")
    sets = {name: read_adapters(place, target) for name, place in places.items()}
    trained = {"norm_refit": "norm_refit"} if "norm_refit" in theirs["models"] else {}
    trained |= {one["lr"]: f"skyline/lr-{one['lr']:g}" for one in theirs["skyline_sweep"]}
    files = {key: path.parent / "baselines" / where / "weights/weights.safetensors" for key, where in trained.items()}
    weights = {key: load_file(file) for key, file in files.items() if file.is_file()}
    cut, seed = theirs["data"]["context_size"], theirs["seed"]
    sequences = read_sequences(args.tokens, theirs["positions"], cut, args.max_sequences, seed)
    unequal = unequal_facts(theirs, sequences, sets["replacement"])
    if unequal:
        print(*(f"{line}  DIFFERS" for line in unequal), sep="\n")
        return 1
    ours, intervals, moves = measure(base, target, sets, weights, sequences, theirs)
    return int(compare(theirs, ours, args.tolerance, moves) + compare_intervals(theirs, intervals) > 0)


if __name__ == "__main__":
    sys.exit(main())
