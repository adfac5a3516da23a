"""`tc-adapters judge`: what a judge, a language model or rules, says of features."""

from __future__ import annotations

from tc_adapters_lens.cli import judge_agree, judge_classify, judge_detect

SUMMARY = "ask a language model, or rules, what features mean: classes, descriptions, detection scores, agreement"
EXAMPLE = """\
examples:
  tc-adapters judge classify --run runs/toy --judge rules
  tc-adapters judge detect --run runs/toy --judge-model gpt-4o-mini --max-requests 2000
  tc-adapters judge agree runs/toy/judge/classify-replacement.json runs/toy/judge/classify-replacement-again.json"""

VERBS = {"classify": judge_classify, "detect": judge_detect, "agree": judge_agree}
