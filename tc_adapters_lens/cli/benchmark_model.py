"""The model that `benchmark` measures: opened first, so that finished tasks need no weights, loaded when needed."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.errors import ConfigError, DataError
from tc_adapters_lens.models.adapter_set import AdapterSet
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.pair_checks import check_tokenizers
from tc_adapters_lens.models.pair_info import PairInfo, check_same_pair
from tc_adapters_lens.models.sampling import load_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What has to be named for each model.
PARTS = {
    "replacement": ("base", "target", "adapters"),
    "hybrid": ("base", "target"),
    "target": ("target",),
    "base": ("base",),
}


class BenchmarkModel:
    """A model of lm-eval, made when first asked for.

    Args:
        args: of the verb.
        chat_template: Jinja text in place of the tokenizer's.
    Attributes:
        source: what it is made of, as JSON: two models of the same source answer alike.
        tokenizer: its own.
    Raises:
        CheckpointError, PairError, AdapterSetError: as where models and adapters are loaded.
        ConfigError: the server cannot be used.
        DataError: no tokenizer.
    """

    def __init__(self, args: Namespace, chat_template: str | None):
        self._args, self._template = args, chat_template
        self.files = {name: self._open(name) for name in parts(args) if name != "adapters"}
        own = self.files["base" if args.model == "base" else "target"]
        if own.tokenizer is None:
            raise DataError(f"Benchmarks are texts, which need a tokenizer. Got {own.name} without one.")
        self.tokenizer: PreTrainedTokenizerBase = own.tokenizer
        self._own = own
        self.source = self._served() if args.server is not None else self._weights()

    @cached_property
    def lm(self) -> Any:
        """The model as lm-eval's evaluator takes it."""
        from tc_adapters_lens.integrations.lm_eval.model import AdaptersLM, ServedLM

        args = self._args
        if args.server is not None:
            return ServedLM(
                self.source["server"],
                self.source["served_model"],
                str(self._own.directory),
                self._template,
                seed=args.seed,
                num_concurrent=args.batch_size,
                max_length=self._own.config.max_position_embeddings + 1,  # of which lm-eval keeps one token
                timeout=_A_DAY,
            )
        return AdaptersLM(self._load(), self.tokenizer, self._template, batch_size=args.batch_size)

    def _open(self, name: str) -> Checkpoint:
        return Checkpoint.open(self._args[name], self._args[f"{name}_revision"])

    def _served(self) -> dict[str, Any]:
        from tc_adapters_lens.integrations.lm_eval.server import completions_url, served_model

        args = self._args
        return {"server": completions_url(args.server), "served_model": served_model(args.server, args.served_model)}

    def _weights(self) -> dict[str, Any]:
        args = self._args
        source: dict[str, Any] = {name: checkpoint.fingerprint() for name, checkpoint in self.files.items()}
        if len(self.files) == 2:
            base, target = self.files["base"], self.files["target"]
            check_tokenizers(base.tokenizer, target.tokenizer, args.allow_tokenizer_mismatch)
        self._adapters: AdapterSet | None = None
        if args.model == "replacement":
            self._adapters = AdapterSet.from_pretrained(args.adapters)
            if not args.allow_other_pair:
                own = self._adapters.info.pair
                pair = PairInfo(args.base, args.target, None, None, source["base"], source["target"])
                check_same_pair(f"Adapters in {args.adapters}", own, pair, "Use that pair, or say --allow-other-pair.")
            source["adapters"] = self._adapters.fingerprint()
        return source | {"dtype": args.dtype}

    def _load(self) -> Any:
        args = self._args
        place = {"dtype": options.torch_dtype(args.dtype), "device": options.torch_device(args.device)}
        if len(self.files) == 1:
            return load_target(self._own, **place)
        from tc_adapters_lens.integrations.hf.model import adapter_model

        return adapter_model(self.files["base"], self.files["target"], self._adapters, **place)


def parts(args: Namespace) -> tuple[str, ...]:
    """What must be named: all that the model is made of, or of a served one whose tokenizer it has."""
    if args.server is not None:
        return ("base",) if args.model == "base" else ("target",)
    return PARTS[args.model]


def check_parts(args: Namespace) -> None:
    """Raises ConfigError: something is not named."""
    missing = [f"--{name}" for name in parts(args) if args[name] is None]
    if missing:
        names = ", ".join(f"--{name}" for name in parts(args))
        raise ConfigError(f"The {args.model} needs --run, or {names}. {missing[0]} is missing.")


_A_DAY = 24 * 60 * 60  # seconds: a response of many thousand tokens takes its time
