"""What a response answers, once its thinking is left out: a boxed value or a letter."""

from __future__ import annotations

import re

__all__ = ["boxed", "letter", "same_value"]

_LONGEST_ANSWER = 400  # characters; comparing values takes time that grows fast with them
_LETTER = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?([A-D])(?![A-Za-z])")
_SAID_LETTER = re.compile(r"[Aa]nswer\s*(?:is|:)?\s*\**\s*\(?([A-D])(?![A-Za-z])")


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, None without one that is closed."""
    from lm_eval.tasks.minerva_math.utils import last_boxed_only_string, remove_boxed

    found = last_boxed_only_string(text)
    try:
        return None if found is None else remove_boxed(found).strip()
    except AssertionError:  # \fbox
        return None


def letter(text: str) -> str | None:
    r"""A to D: in the last \boxed{...}, or after "the answer is"."""
    box = boxed(text)
    if box is not None:
        found = _LETTER.match(box)
        return found[1] if found else None
    said = _SAID_LETTER.findall(text)
    return said[-1] if said else None


def same_value(answer: str, true: str) -> bool:
    """Whether two answers in LaTeX mean the same, by either of the two comparisons of lm-eval's minerva_math.

    Both stop after 5 seconds by an alarm signal, so only the main thread can call this.
    """
    from lm_eval.tasks.minerva_math.utils import is_equiv, normalize_final_answer
    from math_verify import LatexExtractionConfig, parse, verify

    if len(answer) > _LONGEST_ANSWER:
        return False
    if is_equiv(normalize_final_answer(answer), normalize_final_answer(true)):
        return True
    read = [LatexExtractionConfig()]
    return bool(verify(parse(f"${true}$", extraction_config=read), parse(f"${answer}$", extraction_config=read)))
