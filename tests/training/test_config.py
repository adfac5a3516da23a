"""Configurations: what is accepted, what is refused and in which words, and that nothing gets lost."""

import dataclasses
import math
import textwrap
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from tc_adapters_lens.errors import ConfigError
from tc_adapters_lens.training.config import (
    AdapterConfig,
    DataConfig,
    LoggerConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainingConfig,
    load_config,
    read_chat_template,
)

CONFIGS = Path(__file__).parents[2] / "configs"
MINIMAL: dict[str, Any] = {"base": "a/base", "target": "a/target", "data": {"path": "toy"}}


def write(directory: Path, text: str) -> Path:
    path = directory / "config.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def minimal_file(directory: Path) -> Path:
    return write(directory, "base: a/base\ntarget: a/target\ndata: {path: toy}\n")


def error_of(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.from_dict({**MINIMAL, **values})
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestFromDict:
    def test_defaults_are_the_papers_recipe(self):
        config = TrainingConfig.from_dict(MINIMAL)
        assert config.objective == ObjectiveConfig.paper(1e-3)
        assert config.adapters.n_features == 8192
        assert (config.training.lr, config.training.lr_end, config.training.batch_size_prompts) == (
            8e-4,
            0,
            1,
        )
        assert (config.training.adam_beta1, config.training.adam_beta2) == (0.9, 0.999)
        assert config.training.training_tokens is None

    @pytest.mark.parametrize(
        ("values", "unknown", "nearest"),
        [
            ({"trainng": {}}, "trainng", "training"),
            ({"training": {"learning_rate": 1}}, "training.learning_rate", None),
            ({"training": {"lr_warmup_steps": 1}}, "training.lr_warmup_steps", "lr_warm_up_steps"),
            ({"objective": {"presett": "paper"}}, "objective.presett", "preset"),
            ({"objective": {"l1_coeficient": 1}}, "objective.l1_coeficient", "l1_coefficient"),
            ({"lr": 1}, "lr", "training.lr"),
            ({"n_features": 8}, "n_features", "adapters.n_features"),
            ({"data": {"path": "toy", "contex_size": 8}}, "data.contex_size", "context_size"),
            ({"logger": {"log_to_wanb": True}}, "logger.log_to_wanb", "log_to_wandb"),
        ],
    )
    def test_unknown_key(self, values: dict[str, Any], unknown: str, nearest: str | None):
        message = error_of(values)
        if nearest is None:
            assert "Known keys here: activation_checkpointing, adam_beta1" in message
        else:
            assert f"Did you mean '{nearest}'?" in message
        assert f"unknown key '{unknown}'" in message

    def test_missing_key(self):
        with pytest.raises(ConfigError, match=r"missing key 'data\.path': it has no default"):
            TrainingConfig.from_dict({"base": "a", "target": "b", "data": {}})
        with pytest.raises(ConfigError, match="missing key 'target'"):
            TrainingConfig.from_dict({"base": "a", "data": {"path": "toy"}})

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"seed": 1.5}, "seed must be a whole number. Got 1.5."),
            ({"seed": True}, "seed must be a whole number. Got True."),
            ({"base": 3}, "base must be text. Got 3."),
            ({"base": None}, "base must be text. Got None."),
            ({"dtype": "float16"}, "dtype must be 'float32' or 'bfloat16'. Got 'float16'."),
            ({"training": {"lr": "fast"}}, "training.lr must be a number. Got 'fast'."),
            ({"training": {"lr": False}}, "training.lr must be a number. Got False."),
            (
                {"training": {"training_tokens": 1e6}},
                "training.training_tokens must be a whole number or null.",
            ),
            ({"logger": {"log_to_wandb": 1}}, "logger.log_to_wandb must be true or false. Got 1."),
            ({"training": [1]}, "training must be a mapping of keys to values. Got [1]."),
            ({"objective": None}, "objective must be a mapping of keys to values. Got None."),
            (
                {"data": {"path": "x", "packing": "sometimes"}},
                "data.packing must be true or false. Got 'sometimes'.",
            ),
        ],
    )
    def test_wrong_type(self, values: dict[str, Any], message: str):
        assert message in error_of(values)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"seed": -1}, "seed must be at least 0. Got -1."),
            ({"base": " "}, "base must not be empty."),
            ({"device": "gpu"}, "device must be auto, cpu, cuda, cuda:N or mps. Got 'gpu'."),
            ({"adapters": {"n_features": 0}}, "adapters.n_features must be at least 1. Got 0."),
            ({"training": {"lr": 0}}, "training.lr must be above 0. Got 0.0."),
            ({"training": {"lr": math.nan}}, "training.lr must be above 0. Got nan."),
            ({"training": {"lr": math.inf}}, "training.lr must be above 0. Got inf."),
            ({"training": {"lr_end": 1.0}}, "Got 1.0 (lr_end) and 0.0008 (lr)."),
            ({"training": {"adam_beta2": 1}}, "training.adam_beta2 must be at least 0 and below 1. Got 1.0."),
            (
                {"training": {"batch_size_prompts": 0}},
                "training.batch_size_prompts must be at least 1. Got 0.",
            ),
            ({"objective": {"l1_coefficient": -1}}, "objective.l1_coefficient must be at least 0. Got -1.0."),
            ({"objective": {"kl_weight": 0, "nmse_weight": 0, "bridging_weight": 0}}, "Got 0 for all three."),
            ({"data": {"path": "x", "context_size": 1}}, "data.context_size must be at least 2. Got 1."),
            ({"data": {"path": ""}}, "data.path must not be empty."),
            ({"logger": {"wandb_log_frequency": 0}}, "logger.wandb_log_frequency must be at least 1."),
        ],
    )
    def test_out_of_range(self, values: dict[str, Any], message: str):
        assert message in error_of(values)

    def test_python_callers_get_the_same_checks(self):
        with pytest.raises(ConfigError, match=r"training\.lr must be a number. Got 'fast'"):
            OptimConfig(lr="fast")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ConfigError, match="data must be DataConfig"):
            TrainingConfig(base="a", target="b", data={"path": "toy"})  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="n_features"):
            dataclasses.replace(AdapterConfig(), n_features=-1)

    def test_whole_numbers_become_floats(self):
        lr = OptimConfig(lr=1).lr
        assert (lr, type(lr)) == (1.0, float)

    def test_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            AdapterConfig().n_features = 1  # pyright: ignore[reportAttributeAccessIssue]


class TestPresets:
    def test_paper(self):
        objective = ObjectiveConfig.paper(0.01)
        assert (objective.kl_weight, objective.nmse_weight, objective.bridging_weight) == (1, 1, 1)
        assert (objective.l1_coefficient, objective.nmse_counts_embedding) == (0.01, False)

    def test_authors(self):
        objective = ObjectiveConfig.authors(0.01)
        assert (objective.kl_weight, objective.nmse_weight, objective.bridging_weight) == (1, 1, 2)
        assert (objective.l1_coefficient, objective.nmse_counts_embedding) == (0.01, True)

    def test_in_a_mapping(self):
        config = TrainingConfig.from_dict({**MINIMAL, "objective": {"preset": "authors", "l1_coefficient": 0.1}})
        assert config.objective == ObjectiveConfig.authors(0.1)

    def test_written_values_win(self):
        config = TrainingConfig.from_dict({**MINIMAL, "objective": {"preset": "authors", "bridging_weight": 0.5}})
        assert config.objective.bridging_weight == 0.5
        assert config.objective.nmse_counts_embedding

    def test_unknown(self):
        message = error_of({"objective": {"preset": "author"}})
        assert message == ("objective.preset must be one of paper, authors. Got 'author'. Did you mean 'authors'?")

    def test_fast_training(self):
        training = TrainingConfig.from_dict({**MINIMAL, "training": {"preset": "fast", "lr": 0.1}}).training
        expected = OptimConfig(lr=0.1, lr_scheduler_name="constant", lr_decay_steps=None, start="data", local_share=0.5)
        assert training == expected
        assert TrainingConfig.from_dict({**MINIMAL, "training": dataclasses.asdict(training)}).training == expected

    @pytest.mark.parametrize("values", [{}, {"preset": "paper"}])
    def test_paper_training_is_the_default(self, values: dict[str, Any]):
        assert TrainingConfig.from_dict({**MINIMAL, "training": values}).training == OptimConfig()

    def test_fast_is_for_adapters_that_start_from_nothing(self):
        message = error_of({"training": {"preset": "fast"}, "warm_start": "runs/sparse/adapters"})
        assert "Got training.start data and local_share 0.5; set training.start: random" in message

    def test_a_decay_over_all_steps_needs_a_constant_rate_before_it(self):
        message = error_of({"training": {"lr_decay_steps": None}})
        assert message.endswith("Got cosineannealing.")


class TestLoadConfig:
    def test_scientific_notation_is_a_number(self, tmp_path: Path):
        path = write(tmp_path, "base: a\ntarget: b\ndata: {path: toy}\ntraining: {lr: 8e-4}\n")
        assert load_config(path).training.lr == 8e-4

    def test_round_trip(self, tmp_path: Path):
        config = TrainingConfig(
            base="a",
            target="b",
            data=DataConfig("rows.jsonl", chat_template="{{ bos_token }}\n{%- generation %}x{% endgeneration %}"),
            objective=ObjectiveConfig.authors(3e-4),
            training=OptimConfig(training_tokens=10, lr=1e-5),
            logger=LoggerConfig(run_name="näme"),
        )
        assert TrainingConfig.from_dict(config.to_dict()) == config
        assert load_config(write(tmp_path, config.to_yaml())) == config

    @pytest.mark.parametrize(
        "overrides",
        [
            ["training.lr=1e-3", "seed=7", "data.max_sequences=3", "warm_start=runs/a"],
            {"training.lr": 1e-3, "seed": 7, "data.max_sequences": 3, "warm_start": "runs/a"},
            {"training": {"lr": "1e-3"}, "seed": "7", "data": {"max_sequences": "3"}, "warm_start": "runs/a"},
        ],
    )
    def test_overrides(self, tmp_path: Path, overrides: Any):
        config = load_config(minimal_file(tmp_path), overrides)
        assert (config.training.lr, config.seed, config.data.max_sequences) == (1e-3, 7, 3)
        assert config.warm_start == "runs/a"
        assert config.data.path == "toy"  # its neighbours stay

    def test_last_override_wins(self, tmp_path: Path):
        assert load_config(minimal_file(tmp_path), ["seed=1", "seed=2"]).seed == 2

    def test_override_by_null(self, tmp_path: Path):
        path = write(tmp_path, "base: a\ntarget: b\ndata: {path: toy, max_sequences: 5}\n")
        assert load_config(path, ["data.max_sequences=null"]).data.max_sequences is None

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["training.lrr=1"], "unknown key 'training.lrr'. Did you mean 'lr'?"),
            (["seed.x=1"], "seed must be a whole number. Got {'x': 1}."),
            (["training.lr"], "must read key=value, as training.lr=1e-3. Got 'training.lr'."),
            (["training=3"], "training must be a mapping of keys to values. Got 3."),
            (["seed=[1"], "seed is not valid YAML"),
        ],
    )
    def test_bad_overrides(self, tmp_path: Path, overrides: list[str], message: str):
        with pytest.raises(ConfigError) as caught:
            load_config(minimal_file(tmp_path), overrides)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_bad_files(self, tmp_path: Path):
        with pytest.raises(ConfigError, match="there is no such file"):
            load_config(tmp_path / "nothing.yaml")
        with pytest.raises(ConfigError, match="cannot read the config"):
            load_config(tmp_path)
        with pytest.raises(ConfigError, match=r"is not valid YAML, line 3"):
            load_config(write(tmp_path, "base: a\ntarget: [b\n"))
        with pytest.raises(ConfigError, match=r"must hold a mapping of keys to values\. Got list"):
            load_config(write(tmp_path, "- a\n- b\n"))
        with pytest.raises(ConfigError, match=r"must hold a mapping of keys to values\. Got NoneType"):
            load_config(write(tmp_path, ""))
        (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match="cannot read the config"):
            load_config(tmp_path / "config.yaml")

    def test_chat_template_file_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir("/")
        (tmp_path / "mine.jinja").write_text("{{ messages }}")
        path = write(tmp_path, "base: a\ntarget: b\ndata: {path: toy, chat_template: mine.jinja}\n")
        assert load_config(path).data.chat_template == "{{ messages }}"
        monkeypatch.chdir(tmp_path)
        assert read_chat_template("mine.jinja") == "{{ messages }}"
        with pytest.raises(ConfigError, match=r"Got 'yours\.jinja'; no file at"):
            load_config(path, ["data.chat_template=yours.jinja"])


class TestTrained:
    def test_adapters_are_the_default_also_of_files_without_the_key(self):
        values = TrainingConfig.from_dict(MINIMAL).to_dict()
        assert values.pop("trained") == "adapters"
        assert TrainingConfig.from_dict(values).trained == "adapters"

    @pytest.mark.parametrize("trained", ["mlps", "norms"])
    def test_dense_weights_take_the_settings_of_adapters_that_mean_nothing_to_them(self, trained: str):
        config = TrainingConfig.from_dict(
            {**MINIMAL, "trained": trained, "adapters": {"n_features": 7}, "objective": {"l1_coefficient": 0.1}}
        )
        assert TrainingConfig.from_yaml(config.to_yaml()) == config

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"warm_start": "runs/a"}, 'needs warm_start: null; anything else is for adapters. Got "runs/a".'),
            ({"training": {"start": "data"}}, 'needs training.start: "random"; anything else is'),
            ({"training": {"preset": "fast"}}, 'needs training.start: "random"; anything else is'),
            ({"training": {"local_share": 0.5}}, "needs training.local_share: 0.0; anything else is"),
            ({"training": {"shard_weights": True}}, "needs training.shard_weights: false; anything else is"),
        ],
    )
    def test_what_is_for_adapters_alone_is_refused(self, values: dict[str, Any], message: str):
        assert f"trained: mlps {message}" in error_of({**values, "trained": "mlps"})
        TrainingConfig.from_dict({**MINIMAL, **values})

    def test_other_words_are_refused(self):
        assert error_of({"trained": "mlp"}).startswith("trained must be 'adapters' or 'mlps' or 'norms'. Got 'mlp'.")


@pytest.mark.parametrize(
    "name", ["toy", "toy-fast", "r1-distill-qwen-7b", "r1-distill-qwen-1.5b", "r1-distill-llama-8b"]
)
def test_shipped_configs_load(name: str):
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.objective == ObjectiveConfig.paper(config.objective.l1_coefficient)
    assert config.training.lr == {"toy": 0.01, "toy-fast": 0.0075}.get(name, 8e-4)
    assert config.training.local_share == (0.5 if name == "toy-fast" else 0)
    if not name.startswith("toy"):
        assert config.allow_tokenizer_mismatch
        assert config.dtype == "bfloat16"
        assert config.data.chat_template is not None
        assert "generation" in config.data.chat_template


def test_every_shipped_config_is_tested():
    assert len(list(CONFIGS.glob("*.yaml"))) == 5


def test_command_line_through_jsonargparse(tmp_path: Path):
    """The dataclasses are what jsonargparse needs: typed options with their help."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainingConfig)
    options = "--base a/base --target a/target --data.path toy --training.lr 1e-3 --data.packing true"
    given = parser.parse_args(options.split(), defaults=False)
    config = load_config(minimal_file(tmp_path), given.as_dict())
    assert (config.training.lr, config.data.packing) == (1e-3, True)
    assert "peak learning rate" in parser.format_help()


def test_a_shipped_recipe_is_found_by_name_wherever_one_is(tmp_path, monkeypatch) -> None:
    (tmp_path / "toy").mkdir()  # a directory of that name is not a configuration
    monkeypatch.chdir(tmp_path)
    assert load_config("toy").base == "toy:base"
    assert load_config("r1-distill-qwen-7b.yaml").target == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
