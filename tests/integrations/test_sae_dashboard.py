"""Dashboards against the replacement model's own activations, and everything that may go wrong with their files."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.metadata
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tc_adapters_lens import assets
from tc_adapters_lens.errors import AdapterSetError, DataError, MissingExtraError, RunError
from tc_adapters_lens.features.promoted import promoted_tokens
from tc_adapters_lens.integrations.sae_dashboard.dashboards import require_sae_dashboard, write_dashboards
from tc_adapters_lens.integrations.sae_dashboard.page import visible
from tc_adapters_lens.integrations.sae_dashboard.runner import draw, readout
from tc_adapters_lens.integrations.sae_dashboard.text import HeldOutText
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.pair import load_pair
from tests.features.builder import HOSTILE, make_vocabulary
from tests.integrations.conftest import DEAD, HOOK, random_adapters
from tests.tiny import D_VOCAB, FAMILY_CONFIGS, tiny_pair

pytestmark = pytest.mark.usefixtures("stand_in_scripts")

FEATURES = [3, 0, 7]
TOKENS = torch.randint(0, D_VOCAB, (9, 20), generator=torch.Generator().manual_seed(2))


def held_out(store, **changes) -> HeldOutText:
    return HeldOutText(store.tokens, store.offsets, store.vocabulary, "held-out", **changes)


def write(drawable, out: Path, features=((1, 3), (1, 0), (2, 4)), with_store: bool = True, **options):
    model, adapters, store = drawable
    return write_dashboards(
        model, adapters, features, held_out(store), out, store=store if with_store else None, **options
    )


def page_data(path: Path) -> dict:
    """The data that a page's script returns: feature -> component -> values."""
    script = path.read_text(encoding="utf-8").partition("function defineData()")[2]
    return json.JSONDecoder().raw_decode(script, script.index("return ") + 7)[0]["DASHBOARD_DATA"]


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
@pytest.mark.parametrize("layer", [0, 2])
def test_activations_are_those_of_the_replacement_model(family, layer):
    model = load_pair(*tiny_pair(family))
    adapters = random_adapters(model)
    before, objects = adapters.state(), list(map(id, adapters[layer].parameters()))
    drawn = draw(model, adapters, layer, FEATURES, TOKENS, readout(model, layer, D_VOCAB), batch_size=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapters.state().items())
    assert objects == list(map(id, adapters[layer].parameters()))
    assert "fold_W_dec_norm" not in vars(adapters[layer])
    assert not model.acts_to_saes
    assert set(model.modes) == {"target"}

    with torch.no_grad(), model.adapters(adapters):
        _, cache = model.run_with_cache(TOKENS)
    acts = cache[HOOK.format(layer=layer)][..., FEATURES]
    assert 10 < (acts > 0).sum() < 0.8 * acts.numel()
    for at, feature in enumerate(FEATURES):
        found, wanted = drawn.data.feature_data_dict[feature], acts[..., at]
        n_active = int((wanted > 0).sum())
        assert sum(found.acts_histogram_data.bar_heights) == n_active
        assert f"{n_active / wanted.numel():.3%}" in (found.acts_histogram_data.title or "")
        top = found.sequence_data.seq_group_data[0].seq_data
        assert len(top) == 20
        for sequence in top:
            at_row, at_position = sequence.original_index, sequence.qualifying_token_index
            window = slice(at_position - 5, at_position + 6)
            assert sequence.token_ids == TOKENS[at_row, window].tolist()
            np.testing.assert_allclose(sequence.feat_acts, wanted[at_row, window], atol=6e-5)  # shown to 4 digits
        inside = wanted[:, 6:-5]
        best = [sequence.feat_acts[5] for sequence in top]
        np.testing.assert_allclose(best, inside.flatten().topk(20).values, atol=6e-5)

    effects, _ = promoted_tokens(model, layer, adapters[layer].W_dec[FEATURES], 10)
    for at, feature in enumerate(FEATURES):
        table = drawn.data.feature_data_dict[feature].logits_table_data
        assert table.top_token_ids == effects.ids[at].tolist()
        np.testing.assert_allclose(table.top_logits, effects.effects[at], atol=1e-6)


def test_without_adapters_below_the_activations_would_differ(drawable):
    """The test above can tell the replacement model from the target."""
    model, adapters, _ = drawable
    with torch.no_grad():
        _, cache = model.run_with_cache(TOKENS)
        of_target = adapters[2].encode(cache["blocks.2.mlp.hook_in"])
        with model.adapters(adapters):
            _, cache = model.run_with_cache(TOKENS)
    assert (of_target - cache[HOOK.format(layer=2)]).abs().max() > 0.01


def test_an_adapter_of_another_hook_is_refused(drawable):
    model, adapters, _ = drawable
    wrong = AdapterSet.from_state(adapters.state(), adapters.info)
    wrong[1].cfg.metadata.hook_name = "blocks.0.mlp.hook_in"
    with pytest.raises(AdapterSetError, match=r"of layer 1 must read blocks\.1\.mlp\.hook_in .*Got blocks\.0\.mlp"):
        draw(model, wrong, 1, [0], TOKENS, readout(model, 1, D_VOCAB))


def test_a_feature_that_writes_nothing_is_refused(drawable):
    model, adapters, _ = drawable
    state = adapters.state()
    state["W_dec"][1, 4] = 0
    with pytest.raises(AdapterSetError, match=r"Got 1\.4, whose decoder is zero"):
        draw(model, AdapterSet.from_state(state, adapters.info), 1, [4], TOKENS, readout(model, 1, D_VOCAB))


def text_of(lengths: list[int], **options) -> HeldOutText:
    """Every token's id is its own flat position."""
    offsets = np.cumsum([0, *lengths])
    tokens = np.arange(offsets[-1], dtype=np.int32)
    return HeldOutText(tokens, offsets, make_vocabulary(2), "made up", **options)


def test_the_length_keeps_most_tokens():
    # 20 x 4, 30 x 3, 50 x 2, 100 x 1 = 80, 90, 100, 100: of equal ones the shorter, which keeps more sequences
    text = text_of([20, 100, 30, 50])
    assert text.length == 50
    np.testing.assert_array_equal(text.rows()[:, 0], [20, 150])
    assert text_of([20, 100, 30, 50], longest=30).length == 30
    assert text.n_known == 200


def test_rows_hold_the_peaks_first_and_then_others():
    text = text_of([40] * 10, max_tokens=3 * 40)
    rows = text.rows(np.array([7 * 40 + 39, -1, 2 * 40, 7 * 40 + 1]))
    firsts = (rows[:, 0] // 40).tolist()
    assert len(firsts) == 3
    assert {2, 7} < set(firsts)
    assert firsts == sorted(firsts)
    np.testing.assert_array_equal(rows - rows[:, :1], np.tile(np.arange(40), (3, 1)))
    np.testing.assert_array_equal(text.rows(), text.rows())
    drawn = {tuple(text_of([40] * 10, max_tokens=120, seed=seed).rows()[:, 0].tolist()) for seed in range(9)}
    assert len(drawn) > 1


def test_a_peak_that_a_row_does_not_reach_brings_no_sequence():
    # length 40: 3 x 40 against 1 x 90; the second sequence's peak is at 45
    text = text_of([40, 90, 40], max_tokens=40)
    assert text.length == 40
    assert text.rows(np.array([40 + 45, 130]))[:, 0].tolist() == [130]


@pytest.mark.parametrize("lengths", [[], [11], [12, 12], [30]])
def test_too_little_text(lengths):
    with pytest.raises(DataError, match="Dashboards need 20 positions"):
        _ = text_of(lengths).rows()


def test_pages_index_and_what_they_say(drawable, tmp_path):
    _, adapters, store = drawable
    index = write(drawable, tmp_path / "out", per_page=2)
    assert index == json.loads((tmp_path / "out/index.json").read_text())
    assert list(index["features"]) == ["1.0", "1.3", "2.4"]
    assert index["features"]["1.0"] == index["features"]["1.3"] != index["features"]["2.4"]
    assert index["provenance"]["adapters_fingerprint"] == adapters.fingerprint()
    listed = (tmp_path / "out/index.html").read_text()
    for layer, feature in ((1, 0), (1, 3), (2, 4)):
        of_store, file = store[layer, feature], index["features"][f"{layer}.{feature}"]
        assert f'<a href="{file}#{feature}">{layer}.{feature}</a>' in listed
        assert f"{100 * of_store.frequency:.3g}%" in listed
        facts = index["pages"][file]["features"][f"{layer}.{feature}"]
        assert facts == {
            "frequency": of_store.frequency,
            "max": of_store.max,
            "promoted": [token.text for token in of_store.promoted[:8]],
        }
        assert html.escape(visible(of_store.promoted[0].text), quote=False)[:8] in listed
        shown = page_data(tmp_path / "out" / file)[str(feature)]
        promoted = shown["logitsTableData"]["0"]["posLogits"]
        assert [row["symbol"] for row in promoted] == [visible(token.text) for token in of_store.promoted[:10]]
        np.testing.assert_allclose(
            [row["value"] for row in promoted], [t.effect for t in of_store.promoted[:10]], atol=1e-6
        )
    assert "<script>window" not in listed
    scripts = sorted(path.name for path in (tmp_path / "out/lib").iterdir())
    assert [name.partition("-")[0] for name in scripts] == ["d3", "plotly"]


def test_no_text_can_leave_its_script_and_only_these_scripts_run(drawable, tmp_path):
    index = write(drawable, tmp_path)
    for file in {*index["features"].values()}:
        page = (tmp_path / file).read_text(encoding="utf-8")
        shown = page_data(tmp_path / file)
        texts = {t["tok"] for f in shown.values() for g in f["tokenData"].values() for row in g["data"] for t in row}
        assert len(texts & set(map(visible, HOSTILE))) > 5
        assert not any(text in page for text in HOSTILE if "<" in text)
        inline = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
        assert len(inline) == 2
        policy = html.unescape(re.findall(r'Content-Security-Policy" content="(.*?)"', page)[0])
        hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in inline]
        assert f"script-src 'self' 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in policy
        assert len(re.findall("<script", page)) == 4
        assert "://" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_every_feature_has_a_place_for_every_group(drawable, tmp_path):
    """sae-dashboard makes places for the groups of the page's first feature alone."""
    index = write(drawable, tmp_path)
    for file in {*index["features"].values()}:
        page = (tmp_path / file).read_text(encoding="utf-8")
        for components in page_data(tmp_path / file).values():
            for group in components["tokenData"]:
                assert page.count(f'<div class="seq-group" id="{group}"></div>') == 1


def test_axes_of_small_values_have_plotlys_own_ticks(drawable, tmp_path):
    """sae-dashboard's would be multiples of 0.1, or a list of zeros as long as the values are small."""
    index = write(drawable, tmp_path, [(1, 3)])
    shown = page_data(tmp_path / index["features"]["1.3"])["3"]
    for histogram in ("actsHistogramData", "logitsHistogramData"):
        assert "ticks" not in shown[histogram]["0"]
        assert sum(shown[histogram]["0"]["y"]) > 0


def test_a_silent_feature_says_so(drawable, tmp_path):
    index = write(drawable, tmp_path, [(0, DEAD), (0, 1)], with_store=False)
    shown = page_data(tmp_path / index["features"][f"0.{DEAD}"])[str(DEAD)]
    assert shown["actsHistogramData"]["0"]["title"] == "NOT ACTIVE ON THIS PAGE'S TOKENS"
    assert not any(group["data"] for group in shown["tokenData"].values())
    assert index["pages"][index["features"]["0.1"]]["features"][f"0.{DEAD}"]["frequency"] == 0.0


def test_pages_that_are_there_are_kept_and_a_killed_run_goes_on(drawable, tmp_path):
    drawn = []

    def until_killed(batches):
        for number, batch in enumerate(batches):
            if number == 1:
                raise KeyboardInterrupt
            yield batch

    def listed(batches):
        drawn.append(list(batches))
        return batches

    with pytest.raises(KeyboardInterrupt):
        write(drawable, tmp_path, progress=until_killed)
    assert list(json.loads((tmp_path / "index.json").read_text())["features"]) == ["1.0", "1.3"]
    index = write(drawable, tmp_path, progress=listed)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("layer*.html")}
    assert write(drawable, tmp_path, progress=listed) == index
    assert times == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("layer*.html")}
    more = write(drawable, tmp_path, [(0, 1)], progress=listed)
    assert list(more["features"]) == ["0.1", "1.0", "1.3", "2.4"]
    (tmp_path / more["features"]["2.4"]).unlink()
    write(drawable, tmp_path, progress=listed)
    assert drawn == [[(2, (4,))], [], [(0, (1,))], [(2, (4,))]]


def test_a_feature_is_looked_up_on_the_page_drawn_last(drawable, tmp_path):
    old = write(drawable, tmp_path, [(1, 0), (1, 3)])["features"]["1.3"]
    new = write(drawable, tmp_path, [(1, 3)])["features"]
    assert new["1.0"] == old != new["1.3"]
    assert write(drawable, tmp_path, [(1, 0), (1, 3)])["features"] == {"1.0": old, "1.3": old}


def test_other_directories_are_refused(drawable, tmp_path):
    model, _, store = drawable
    write(drawable, tmp_path / "own", [(1, 3)])
    other = random_adapters(model, seed=6)
    with pytest.raises(RunError, match="holds dashboards of other adapters"):
        write_dashboards(model, other, [(1, 3)], held_out(store), tmp_path / "own")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else"):
        write(drawable, tmp_path / "foreign")
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["notes.txt"]
    for content in ("{", "[]", '{"format": "tc_adapters_lens.dashboards", "format_version": 1}'):
        (tmp_path / "own/index.json").write_text(content)
        with pytest.raises(RunError, match="cannot be read"):
            write(drawable, tmp_path / "own")


def test_without_d3_the_cdn_is_linked_with_its_hash(drawable, tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "find", lambda name: None)
    index = write(drawable, tmp_path, [(1, 3)])
    page = (tmp_path / index["features"]["1.3"]).read_text(encoding="utf-8")
    d3 = assets.ASSETS["d3"]
    assert f'<script src="{d3.cdn}" integrity="{d3.integrity}" crossorigin="anonymous"></script>' in page
    assert f"This page loads <code>{d3.cdn}</code>: it needs a network." in page
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="(.*?)"', page)[0])
    assert f" {d3.cdn};" in policy


def test_a_missing_extra_is_named_with_both_lines(monkeypatch):
    require_sae_dashboard()
    both = ('pip install "tc-adapters-lens[dashboard]"', 'pip install --no-deps "sae-dashboard==0.8.0"')

    def refusal() -> str:
        with pytest.raises(MissingExtraError) as caught:
            require_sae_dashboard()
        assert "\n" not in str(caught.value)
        assert all(line in str(caught.value) for line in both)
        return str(caught.value)

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.1")
    assert "Got 0.9.1." in refusal()
    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert "Got none." in refusal()
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "sae_dashboard.sae_vis_runner", None)
    assert "Got it without sae_dashboard" in refusal()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a\n\tb", " a↵⇥b"),
        ("\u202eevil\u2066", "⟨U+202E⟩evil⟨U+2066⟩"),
        ("\x00\u2028", "⟨U+0000⟩⟨U+2028⟩"),
        ("<b> שלום 漢字", "<b> שלום 漢字"),
    ],
)
def test_what_cannot_be_seen_is_shown(text, shown):
    assert visible(text) == shown
