"""Layer by layer: NMSE, partial replacement, and the same without bridging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tc_adapters_lens.evaluation.estimate import Estimate
from tc_adapters_lens.report.expectations import inner
from tc_adapters_lens.report.groups import Ablation
from tc_adapters_lens.report.numbers import number
from tc_adapters_lens.report.plots import Key, Panel, Section, curve, figure, label, level, run_keys, scale, whole_axis
from tc_adapters_lens.report.runs import Runs
from tc_adapters_lens.report.styles import Style, run_styles

CURVES = {
    "first": ("The first k layers replaced", "k, layers replaced from the bottom"),
    "last": ("The last k layers replaced", "k, layers replaced from the top"),
    "single": ("One layer replaced", "layer"),
}
_Line = tuple[str, Style, Mapping[str, Any]]


def nmse(runs: Runs) -> Section:
    """NMSE of the residual stream after each layer."""
    styles = run_styles(runs.groups)
    lines: list[_Line] = [(run.label, styles[run.label], run.evaluation) for run in runs.ordered]
    for ablation in runs.ablations:
        if ablation.other is None:
            name = f"{ablation.label} without bridging"
            lines.append((name, replace(styles[ablation.label], dash="dash", symbol="triangle-up"), ablation.without))
    means = "; ".join(f"{name}: mean {number(found['nmse']['value'])}" for name, _, found in lines)
    text = (
        "Normalised squared error of the replacement model's residual stream after each layer: sum of squared error "
        "over sum of squares of the target's, on the counted positions, before the final norm."
    )
    if runs.ablations:
        text += " Dashed: trained without bridging."
    panel = Panel("nmse-layers", "NMSE after each layer", f"NMSE after each layer. {means}.", _nmse_figure(lines))
    keys = [Key(name, style, marker=True) for name, style, _ in lines]
    return Section("nmse", "Internal faithfulness", text, [panel], keys, columns=1)


def partial_replacement(runs: Runs) -> Section:
    """KL with some of the target's layers replaced."""
    styles = run_styles(runs.groups)
    having = [run for run in runs.ordered if run.evaluation["partial_kl"] is not None]
    title = "Partial replacement"
    if not having:
        return Section("partial", title, "Not measured: these evaluations were made with --no-partial.")
    n_sequences = sorted({run.evaluation["partial_sequences"] for run in having})
    text = (
        "KL against the target when only some of its layers are replaced by base MLPs and adapters. Dotted: all layers "
        "replaced. Adapters that stand for the target's own computation stay below it; k = 0 is the target itself and "
        f"not drawn. Measured on {' or '.join(f'{n:,}' for n in n_sequences)} sequences."
    )
    lines: list[_Line] = [(run.label, styles[run.label], run.evaluation) for run in having]
    panels = [_partial_panel(f"partial-{name}", name, lines) for name in CURVES]
    return Section("partial", title, text, panels, run_keys((run.label for run in having), styles), columns=3)


def bridging(runs: Runs) -> Section:
    """NMSE and partial replacement with and without bridging."""
    title = "What bridging does"
    if not runs.ablations:
        text = (
            "Not measured: no run here was trained without bridging (--objective.bridging_weight 0), and no "
            "evaluation holds such adapters."
        )
        return Section("bridging", title, text)
    text = (
        "The same recipe trained with and without the two bridging losses. Without them NMSE can stay low while the "
        "layers no longer work one by one beside the target's: partial replacement then has more KL. Dotted: all "
        "layers replaced."
    )
    panels: list[Panel] = []
    choices: list[str] = []
    styles = {
        "with bridging": Style("#4c72b0"),
        "without bridging": Style("#d97a1c", "dash", "triangle-up"),
    }
    for i, ablation in enumerate(runs.ablations):
        choices.append(_ablation_name(ablation))
        lines: list[_Line] = [
            ("with bridging", styles["with bridging"], ablation.bridged),
            ("without bridging", styles["without bridging"], ablation.without),
        ]
        if all(found["partial_kl"] is not None for _, _, found in lines):
            panels += [_partial_panel(f"bridging-{i}-{name}", name, lines, choices[-1]) for name in CURVES]
        told = "; ".join(f"{name}: {number(found['nmse']['value'])}" for name, _, found in lines)
        panels.append(
            Panel(f"bridging-{i}-nmse", "NMSE after each layer", f"Mean NMSE {told}.", _nmse_figure(lines), choices[-1])
        )
    if len(choices) == 1:
        text += f" Here: {choices[0]}."
    return Section("bridging", title, text, panels, run_keys(styles, styles), choices)


def _ablation_name(ablation: Ablation) -> str:
    l0s = [number(side["l0"]["value"]) for side in (ablation.bridged, ablation.without)]
    beside = f" and {ablation.other}" if ablation.other is not None else ""
    return f"{ablation.label}{beside}, L0 {l0s[0]} with and {l0s[1]} without"


def _nmse_figure(lines: Sequence[_Line]) -> dict[str, Any]:
    data, values = [], []
    for name, style, found in lines:
        estimates = [Estimate.of(one) for one in found["nmse_per_layer"]]
        values += [estimate.value for estimate in estimates]
        layers = range(len(estimates))
        data.append(curve(name, style, layers, estimates, lambda layer: f"layer {layer}"))
    n = len(lines[0][2]["nmse_per_layer"])
    return figure(data, whole_axis("layer", n), {"title": "NMSE", **scale(values)})


def _partial_panel(id_: str, name: str, lines: Sequence[_Line], choice: str = "") -> Panel:
    caption, title = CURVES[name]
    data, values = [], []
    n = len(lines[0][2]["partial_kl"]["single"])
    told = []
    for run, style, found in lines:
        partial = found["partial_kl"]
        ks = range(n) if name == "single" else range(1, n + 1)
        estimates = [Estimate.of(partial[name][k]) for k in ks]
        full = Estimate.of(partial["first"][-1])
        values += [estimate.value for estimate in (*estimates, full)]
        where = "layer {}" if name == "single" else f"{name} {{}}"
        data.append(curve(run, style, ks, estimates, where.format))
        ends = (ks[0] - 0.3, ks[-1] + 0.3)
        hovertext = f"{label(run)}, all layers: {number(full.value)}"
        data.append(level(run, replace(style, dash="dot"), full, ends, hovertext=hovertext))
        most = max((partial[name][k]["value"] for k in inner(name, n)), default=full.value)
        told.append(f"{run}: at most {number(most)}, all layers {number(full.value)}")
    x = whole_axis(title, n)
    description = f"KL with {caption.lower()}. {'; '.join(told)}."
    return Panel(id_, caption, description, figure(data, x, {"title": "KL, nats", **scale(values)}), choice)
