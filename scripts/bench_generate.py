"""Tokens per second of the replacement model's responses, three ways, on the same prompts and to the same length.

    bash scripts/bench_generate
    bash scripts/bench_generate --batch-size 16 --json bench.json

- `hf`: the Hugging Face model that `export --format hf` writes and `intervene` samples from;
- `hooked`: TransformerLens' `generate` of the pair with adapters attached, with a KV cache: the same tokens, or this
  stops;
- `target`: the target alone, a stock Hugging Face model: what `hf` would take without adapters.

The likeliest token each time, end tokens left out of account, so that every contender takes as many steps. Adapters are
random with biases that leave few features active. Repetitions alternate; ratios are taken within one.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from scripts.bench_measure import alternate, median_ratio
from tc_adapters_lens import AdapterSet, AdapterSetInfo, load_pair
from tc_adapters_lens.integrations.hf.model import adapter_model
from tc_adapters_lens.models.checkpoints import Checkpoint
from tc_adapters_lens.models.names import hook_acts
from tc_adapters_lens.models.sampling import load_target
from tc_adapters_lens.training.prompts import load_prompts


class Subject:
    """The built-in pair with random adapters, and prompts of one length.

    Args:
        n_features: of every adapter.
        batch_size: prompts continued together.
        n_new: tokens of each response.
    """

    def __init__(self, n_features: int, batch_size: int, n_new: int) -> None:
        base, target = Checkpoint.open("toy:base"), Checkpoint.open("toy:target")
        prompts, _ = load_prompts("toy", target.tokenizer)
        length = Counter(map(len, prompts)).most_common(1)[0][0]
        same = [prompt for prompt in prompts if len(prompt) == length]
        self.prompts = torch.tensor([same[index % len(same)] for index in range(batch_size)])
        self.n_new = n_new
        self.pair = load_pair("toy:base", "toy:target")
        cfg = self.pair.cfg
        self.adapters = AdapterSet.fresh(cfg.n_layers, cfg.d_model, n_features, AdapterSetInfo(self.pair.pair))
        generator = torch.Generator().manual_seed(0)
        for adapter in self.adapters.values():
            adapter.W_dec.data = torch.randn(adapter.W_dec.shape, generator=generator) * 0.01
            adapter.b_enc.data.fill_(-2.3 / 3**0.5)
        self.replacement = adapter_model(base, target, self.adapters)
        self.target = load_target(target, torch.float32, "cpu")

    def contenders(self) -> dict[str, Callable[[], Tensor]]:
        """Name -> what makes the responses, `[batch pos]` with their prompts."""
        return {
            "hf": lambda: self._hf(self.replacement),
            "hooked": self._hooked,
            "target": lambda: self._hf(self.target),
        }

    def l0(self) -> float:
        """Active features per token, averaged over layers."""
        hooks = [hook_acts(layer) for layer in range(self.pair.cfg.n_layers)]
        with torch.no_grad(), self.pair.adapters(self.adapters):
            _, cache = self.pair.run_with_cache(self.prompts, names_filter=hooks)
        return float(torch.stack([(cache[hook] > 0).float().sum(-1).mean() for hook in hooks]).mean())

    def _hf(self, model: torch.nn.Module) -> Tensor:
        return model.generate(  # pyright: ignore[reportCallIssue]
            self.prompts, max_new_tokens=self.n_new, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    def _hooked(self) -> Tensor:
        with torch.no_grad(), self.pair.adapters(self.adapters):
            found = self.pair.generate(
                self.prompts, max_new_tokens=self.n_new, do_sample=False, stop_at_eos=False, verbose=False
            )
        assert isinstance(found, Tensor)
        return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-features", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--n-new", type=int, default=100, help="tokens of each response")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    subject = Subject(args.n_features, args.batch_size, args.n_new)
    contenders = subject.contenders()
    if not torch.equal(contenders["hf"](), contenders["hooked"]()):
        raise SystemExit("bench_generate: the two replacement models must say the same. They do not.")
    taken = alternate(contenders, args.repeats, "cpu")
    seconds = {name: [one.wall for one in times] for name, times in taken.items()}
    n_tokens = args.batch_size * args.n_new
    result = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "l0": subject.l0(),
        **{name: getattr(args, name) for name in ("n_features", "batch_size", "n_new", "repeats", "threads")},
        "tokens_per_second": {name: n_tokens / min(times) for name, times in seconds.items()},
        "hf_to_hooked": median_ratio(seconds["hooked"], seconds["hf"]),
        "hf_to_target": median_ratio(seconds["target"], seconds["hf"]),
    }
    print(f"{result['l0']:.1f} of {args.n_features:,} features active per token and layer")
    for name, speed in result["tokens_per_second"].items():
        print(f"{name:8} {speed:10,.0f} tokens/s")
    print(
        f"hf is {result['hf_to_hooked']:.2f} times as fast as hooked, {result['hf_to_target']:.2f} as the target alone"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
