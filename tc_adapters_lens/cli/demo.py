"""`tc-adapters demo`: the built-in pair from two models to trained adapters and their features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from tc_adapters_lens.cli import options
from tc_adapters_lens.cli.output import write_json
from tc_adapters_lens.cli.parser import Parser
from tc_adapters_lens.models.names import ADAPTERS, FEATURE_STORES

SUMMARY = "train adapters for the built-in pair at two sparsity weights, measure them and find their features"
EXAMPLE = "example:\n  tc-adapters demo --out runs/demo"

# The dense adapters start from the sparse ones, which saves half of their training.
RECIPES: dict[str, dict[str, float | int]] = {
    "sparse": {},
    "dense": {"objective.l1_coefficient": 9e-4, "training.lr": 4e-3, "training.training_tokens": 470_000},
}
PAGE, PICTURE, RESULT = "report.html", "faithfulness.png", "faithfulness.json"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--out", type=str, default="runs/demo", metavar="DIR", help="where everything is written")
    parser.add_argument(
        "--seed", type=int, default=42, help="of the adapters' start, the order of the data and the cutoffs"
    )
    options.add_json(parser)


def run(args: Namespace) -> dict[str, Any]:
    from tc_adapters_lens.cli import feature_pass
    from tc_adapters_lens.cli.evaluation import Settings, evaluate
    from tc_adapters_lens.features.collect import Keeping
    from tc_adapters_lens.report.faithfulness import faithfulness_table, plot_faithfulness
    from tc_adapters_lens.report.page import write_report
    from tc_adapters_lens.training.config import DataConfig, load_config
    from tc_adapters_lens.training.runner import load_run_pair, train

    out = Path(args.out)
    starts = {"sparse": None, "dense": str(out / "sparse" / ADAPTERS)}
    configs = {
        name: load_config("toy", {"seed": args.seed, "warm_start": starts[name], **recipe})
        for name, recipe in RECIPES.items()
    }
    model = load_run_pair(configs["sparse"])
    text = DataConfig(path="toy", loss_on="response")
    results, summary = {}, {}
    for name, config in configs.items():
        print(f"\n{name} adapters: l1_coefficient {config.objective.l1_coefficient}")
        train(config, out / name, model)
        settings = Settings(config.base, config.target, str(out / name / ADAPTERS), text, batch_size=32)
        evaluation = evaluate(settings, out / name, model=model)
        results[name], summary[name] = evaluation.faithfulness, evaluation.to_dict()
        read = feature_pass.Settings(
            config.base,
            config.target,
            settings.adapters,
            DataConfig(path="toy"),
            group_by="domain",
            keeping=Keeping(seed=args.seed),
            batch_size=32,
        )
        feature_pass.find_features(read, out / name / FEATURE_STORES["replacement"], pair=model)
    write_json(out / RESULT, summary)
    write_report([out / name for name in results], out / PAGE)
    plot_faithfulness(results, out / PICTURE, "Built-in pair: what adapters recover of the fine-tuned target")

    print(f"\nOn {results['sparse'].n_tokens:,} response tokens sampled from the target:\n")
    print(faithfulness_table(results))
    places = {f"{name} adapters": out / name / ADAPTERS for name in results}
    places |= {f"{name} features": out / name / FEATURE_STORES["replacement"] for name in results}
    places |= {"page": out / PAGE, "picture": out / PICTURE, "figures": out / RESULT}
    print("\nWritten:", *(f"  {what:16} {place}" for what, place in places.items()), sep="\n")
    print(f"\nTo look through the features:  tc-adapters serve {out / 'sparse'}")
    print(f"To sort them into classes:     tc-adapters judge classify --run {out / 'sparse'} --judge rules")
    print(f"To see what makes it say wait: tc-adapters graph --run {out / 'sparse'} --tokens toy --before wait --n 1")
    again = f"tc-adapters intervene --run {out / 'sparse'} --group hesitation-output --problems toy"
    print(f"To switch some of them off:    {again}")
    return summary
