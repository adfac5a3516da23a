"""`dashboard` end to end on a tiny saved run, and every way to name features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tc_adapters_lens import assets
from tc_adapters_lens.cli.feature_choice import check_features, parse_features, top_features
from tc_adapters_lens.cli.main import main
from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.models.pair import load_pair
from tests.features.builder import synthetic_store
from tests.integrations.conftest import DEAD, make_store, random_adapters
from tests.tiny import save, tiny_pair, word_tokenizer

pytestmark = pytest.mark.usefixtures("stand_in_scripts")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run without a feature store."""
    root = tmp_path_factory.mktemp("dashboard")
    base, target = (save(model, root / name, word_tokenizer()) for name, model in zip("bt", tiny_pair(), strict=True))
    random_adapters(load_pair(str(base), str(target))).save(root / "run/adapters")
    config = {"base": str(base), "target": str(target), "data": {"path": "toy"}, "adapters": {"n_features": 12}}
    (root / "run/config.yaml").write_text(json.dumps(config))
    return root / "run"


@pytest.fixture
def dashboard(saved, capsys):
    """Runs the verb; returns what it printed and its error line."""

    def run(*argv: str, run_directory: Path = saved, code: int = 0) -> tuple[str, str]:
        assert main(["dashboard", "--run", str(run_directory), *argv, "--device", "cpu"]) == code
        captured = capsys.readouterr()
        if code:
            assert captured.err.count("\n") == 1
        return captured.out, captured.err

    return run


def test_from_a_store(saved, tmp_path, dashboard):
    model = load_pair(*(str(saved.parent / name) for name in "bt"))
    run = tmp_path / "run"
    (run / "adapters").parent.mkdir()
    (run / "config.yaml").write_text((saved / "config.yaml").read_text())
    adapters = random_adapters(model)
    adapters.save(run / "adapters")
    store = make_store(run / "features", model, adapters)
    out, _ = dashboard("--top", "3", "--by", "frequency", "--json", str(tmp_path / "d.json"), run_directory=run)
    assert f"3 features in {run / 'dashboards/index.html'}" in out
    index = json.loads((tmp_path / "d.json").read_text())
    assert index == json.loads((run / "dashboards/index.json").read_text())
    frequencies = sorted((store[layer, f].frequency for layer in range(3) for f in range(DEAD)), reverse=True)
    shown = [facts["frequency"] for page in index["pages"].values() for facts in page["features"].values()]
    assert sorted(shown, reverse=True) == frequencies[:3]
    assert all(page["from_store"] for page in index["pages"].values())

    _, error = dashboard("--features", f"1.{DEAD}", run_directory=run, code=2)
    assert f"Got 1.{DEAD}, which never is." in error
    group = tmp_path / "group.json"
    group.write_text(json.dumps({"name": "mine", "features": [[0, 2], [0, 1], [1, DEAD], [0, 1]]}))
    dashboard("--group", str(group), "--out", str(tmp_path / "group"), run_directory=run)
    assert list(json.loads((tmp_path / "group/index.json").read_text())["features"]) == ["0.1", "0.2"]
    for content, code, says in (
        ({"features": [[1, DEAD]]}, 2, "--group must have a feature that is active somewhere"),
        ({"features": [[9, 1]]}, 1, "Features must be from 0.0 to 2.11, which is what the adapters have. Got 9.1"),
        ({"features": [[0, 1]], "adapters_fingerprint": "xxh3:1"}, 1, "must be of these adapters"),
        ([[0, 1]], 1, "A feature group must be a JSON file"),
    ):
        group.write_text(json.dumps(content))
        _, error = dashboard("--group", str(group), run_directory=run, code=code)
        assert says in error


def test_from_other_text_without_d3(tmp_path, dashboard, monkeypatch):
    text = tmp_path / "text.jsonl"
    rows = [" ".join(f"w{(7 * row + 3 * word) % 90 + 3}" for word in range(20 + row)) for row in range(12)]
    text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    monkeypatch.setattr(assets, "find", lambda name: None)
    out, _ = dashboard(
        "--features", "2.3-2.5", "--tokens", str(text), "--context-size", "25", "--out", str(tmp_path / "o")
    )
    assert "d3 is not here" in out
    assert assets.COMMAND in out
    index = json.loads((tmp_path / "o/index.json").read_text())
    assert list(index["features"]) == ["2.3", "2.4", "2.5"]
    ((page),) = index["pages"].values()
    assert (page["from_store"], page["length"] <= 25, page["text"]) == (False, True, str(text))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "Got none of them."),
        (("--features", "0.1", "--top", "3"), "Got --features and --top."),
        (("--features", "0.1", "--per-page", "0"), "--per-page must be at least 1. Got 0."),
        (("--features", "0.1"), "must have a feature store. Got none. Run `tc-adapters features"),
        (("--top", "3", "--tokens", "toy"), "must have a feature store"),
        (("--features", "0.12", "--tokens", "toy"), "Features must be from 0.0 to 2.11. Got 0.12."),
        (("--features", "3.0", "--tokens", "toy"), "Got 3.0."),
        (("--features", "0.1", "--by", "mean"), "--by must be 'max' or 'frequency'"),
    ],
)
def test_wrong_use_is_one_line(argv, says, dashboard):
    _, error = dashboard(*argv, code=2)
    assert says in error


def test_without_a_run(saved, tmp_path, capsys):
    pair = ["--base", str(saved.parent / "b"), "--target", str(saved.parent / "t")]
    named = ["dashboard", *pair, "--adapters", str(saved / "adapters"), "--features", "0.1"]
    for more, says in (
        ([], "--out must be given where there is no --run"),
        (["--out", str(tmp_path / "o")], "Without --run there is no feature store: name --tokens"),
    ):
        assert main([*named, *more]) == 2
        assert says in capsys.readouterr().err
    assert main(named[:3]) == 2
    assert main([*named[:-2], "--top", "3", "--tokens", "toy", "--out", str(tmp_path / "o")]) == 2


def test_no_run(tmp_path, dashboard):
    _, error = dashboard("--features", "0.1", run_directory=tmp_path, code=2)
    assert "--run must be the directory of a training run" in error


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("0.12", [(0, 12)]),
        ("3.7, 0.1,3.7", [(3, 7), (0, 1)]),
        ("2.5-2.8,2.6", [(2, 5), (2, 6), (2, 7), (2, 8)]),
    ],
)
def test_names(names, found):
    assert parse_features(names) == found


@pytest.mark.parametrize(
    "names", ["", "1", "1.2.3", "1.2-", "1.2-3", "1.2-2.4", "1.4-1.2", "-1.2", "1.x", "1.1-1.2-1.3"]
)
def test_names_that_are_none(names):
    with pytest.raises(ConfigError, match=r"^[^\n]+$"):
        parse_features(names)


def test_top(tmp_path):
    store = synthetic_store(tmp_path / "features")
    frame = store.frame()
    for by in ("max", "frequency"):
        found = top_features(store, 5, by)
        values = [frame.loc[layer * 30 + feature, by] for layer, feature in found]
        assert values == sorted(frame[by], reverse=True)[:5]
    assert len(top_features(store, 10_000, "max")) == (frame["n_active"] > 0).sum() < len(store)
    with pytest.raises(ConfigError, match=r"--top must be at least 1\. Got 0"):
        top_features(store, 0, "max")
    check_features(top_features(store, 10_000, "max"), 2, 30, store)
    none = synthetic_store(tmp_path / "dead", dead=1.0)
    with pytest.raises(ConfigError, match="--top needs features that are active"):
        top_features(none, 3, "max")
