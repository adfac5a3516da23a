"""The paper's evaluation on the built-in pair, from nothing to a page: runs, baselines, measurements.

    OUT/l1-0.02-seed-42/    the headline, with every baseline and the account
    OUT/l1-0.02-seed-1/     its other seeds, and adapters without bridging for each
    OUT/l1-0.06-seed-42/    other sparsity weights
    OUT/report.html         all of it

Started again, it goes on with what is not there yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tc_adapters_lens.cli.baselines import BASELINES
from tc_adapters_lens.cli.evaluation import Settings, evaluate
from tc_adapters_lens.evaluation.record import EVALUATION_FILE
from tc_adapters_lens.models.names import ADAPTERS
from tc_adapters_lens.training.config import DataConfig, TrainingConfig, load_config
from tc_adapters_lens.training.runner import load_run_pair, train

RECIPE = "toy"
TITLE = "How faithful are transcoder adapters? The built-in pair"
HEADLINE, SEEDS = 0.02, (42, 1, 2)
WEIGHTS = (0.06, HEADLINE, 0.006, 0.002, 0.0006)
_BATCH_SIZE = 32


@dataclass(frozen=True)
class _Planned:
    """One run: its configuration, and what it is held against."""

    config: TrainingConfig
    baselines: list[str]
    account: bool

    @property
    def name(self) -> str:
        return f"l1-{self.config.objective.l1_coefficient:g}-seed-{self.config.seed}"


def reproduce_toy(out: Path) -> list[Path]:
    """Train and measure every run that is not measured yet.

    Args:
        out: directory of the runs.
    Returns:
        Their directories, from sparse to dense, the headline's seeds together.
    Raises:
        AdapterLensError: as training and evaluation do.
        KeyboardInterrupt: stopped; the same call goes on.
    """
    planned = _plan()
    model = load_run_pair(planned[0].config)
    directories = []
    for number, run in enumerate(planned, 1):
        directory = out / run.name
        directories.append(directory)
        if (directory / EVALUATION_FILE).is_file():
            continue
        print(f"\nrun {number} of {len(planned)}: {run.name}")
        train(run.config, directory, model)
        settings = Settings(
            run.config.base,
            run.config.target,
            str(directory / ADAPTERS),
            DataConfig(path="toy", loss_on="response"),
            baselines=run.baselines,
            account=run.account,
            batch_size=_BATCH_SIZE,
        )
        evaluate(settings, directory, model=model)
    return directories


def _plan() -> list[_Planned]:
    runs = []
    for weight in WEIGHTS:
        for seed in SEEDS if weight == HEADLINE else SEEDS[:1]:
            config = load_config(RECIPE, {"seed": seed, "objective.l1_coefficient": weight})
            baselines = ["base"]
            if weight == HEADLINE:
                baselines = list(BASELINES) if seed == SEEDS[0] else ["base", "no_bridging"]
            runs.append(_Planned(config, baselines, account=weight == HEADLINE and seed == SEEDS[0]))
    return runs
