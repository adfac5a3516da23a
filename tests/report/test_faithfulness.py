"""The terminal's table and the picture: what they say is what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from tc_adapters_lens.report.faithfulness import faithfulness_table, plot_faithfulness
from tests.evaluation.test_faithfulness import MASK, TOKENS, measure, random_state


@pytest.fixture(scope="module")
def results():
    weaker = {name: tensor * (0.5 if name == "W_dec" else 1) for name, tensor in random_state().items()}
    return {"strong": measure([(TOKENS, MASK)]), "weak": measure([(TOKENS, MASK)], weaker)}


def test_the_table_goes_from_the_worst_to_the_target(results) -> None:
    head, line, *rows = faithfulness_table(results).splitlines()
    assert set(line) == {"-"}
    names = [row.split()[0] for row in rows]
    assert sorted(names) == ["base", "hybrid", "reverse", "shuffled", "strong", "target", "weak"]
    assert names[-1] == "target"
    at = head.index("KL (nats)") + len("KL (nats)")
    kls = [float(row[:at].split()[-1]) for row in rows]
    assert kls == sorted(kls, reverse=True)
    strong = next(row for row in rows if row.startswith("strong"))
    one = results["strong"]
    for cell in (f"{one.models['replacement'].kl.value:.4f}", f"{one.l0.value:.2f}", f"{one.dead.value:.0f} / 60"):
        assert f" {cell}" in strong


def test_axes_say_what_they_show(results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    close = plt.close
    monkeypatch.setattr(plt, "close", drawn.append)
    plot_faithfulness(results, tmp_path / "picture.png", "a pair")
    (figure,) = drawn
    errors, kls = figure.axes
    assert (errors.get_ylabel(), kls.get_ylabel()) == (
        "top-1 error against the target (%)",
        "KL(target || model) (nats)",
    )
    ordered = sorted(results.values(), key=lambda result: result.l0.value)
    assert kls.lines[0].get_xdata().tolist() == [result.l0.value for result in ordered]
    assert kls.lines[0].get_ydata().tolist() == [result.models["replacement"].kl.value for result in ordered]
    hybrid = ordered[0].models["hybrid"].kl.value
    assert [line.get_ydata()[0] for line in kls.lines if line.get_label().startswith("hybrid")] == [hybrid]
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    close(figure)
