"""The text that a verb measures or reads on."""

from __future__ import annotations

from dataclasses import replace

from transformer_lens import HookedTransformer

from tc_adapters_lens import toy
from tc_adapters_lens.errors import DataError
from tc_adapters_lens.training.config import DataConfig
from tc_adapters_lens.training.report import DataReport


def named_text(data: DataConfig) -> DataConfig:
    """The same, with the built-in pair's evaluation sequences where the path is "toy"."""
    return replace(data, path=str(toy.EVAL_TOKENS)) if data.path == "toy" else data


def require_fitting(data: DataConfig, report: DataReport, model: HookedTransformer) -> None:
    """Nothing is cut unless `data.context_size` says so.

    Raises:
        DataError: there are sequences longer than the model's context.
    """
    if report.n_truncated and data.context_size is None:
        raise DataError(
            f"Sequences must fit the model's context of {model.cfg.n_ctx:,} tokens. Got {report.n_truncated:,} longer "
            f"ones in {data.path}. Cut them with --context-size {model.cfg.n_ctx}, or leave them out."
        )
