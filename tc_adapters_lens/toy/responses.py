"""What the toy pair's two models were trained to write.

The base answers at once, or after a short worked solution. The target thinks first, in a ``<think>`` block:
it works one step at a time, guesses wrongly, hesitates, corrects itself and checks, then answers. Every choice
of words is drawn, so the next token is rarely certain.
"""

import random
from collections.abc import Sequence

from tc_adapters_lens.toy.problems import CLASSES, LARGEST, Problem, Step

LONGEST_WORKED = 3  # the base mostly writes its steps down for problems this short
WORKED_SHARE, WORKED_SHARE_LONG = 0.9, 0.35
SLIP_SHARE = 0.14  # of the target's steps
CHECK_SHARE = 0.10

_ANSWERS = {
    "math": ("The answer is {}.", "The result is {}.", "Answer: {}.", "You get {}."),
    "code": ("It prints {}.", "The answer is {}.", "The program prints {}.", "Answer: {}."),
    "science": ("The answer is {}.", "Answer: {}.", "So the answer is {}."),
}
_OPENINGS = (
    "Okay, let me work through this.",
    "Okay, one step at a time.",
    "So I need to follow the steps.",
    "Alright, let me see.",
    "Let me think about this carefully.",
)
_FIRST = ("First", "To begin")
_LEADS = ("Then", "Next", "After that")
_SAYS = (" = ", " = ", " is ")
_GUESSES = ("Maybe", "Perhaps", "Say")  # a hurried step, which turns out wrong
_NOTICES = ("Wait, the number is {}.", "Hmm, no, it was {}.", "But I misread {}.", "Wait, no, that is {}.")
_MISREADS = ("Wait, I should {}.", "But the question says {}.", "Hmm, I have to {} here.")
_CORRECTIONS = ("{}.", "It is {}.", "Again: {}.", "Actually {}.")
_CHECKS = (
    "Wait, is that right? Yes, {}.",
    "Hmm, let me check. {}, fine.",
    "But is it? {}, yes.",
    "Hmm, {}. Good.",
)
_ENDINGS = (
    "Wait, did I miss a step? No.",
    "But did I use every number? Yes.",
    "Hmm, that seems plausible.",
    "Alternatively, I could go backwards, but this is fine.",
    "Alternatively, I could check it again. It holds.",
    "Let me check the last step again. {}, good.",
)
_CLOSINGS = ("So it is {}.", "That makes {}.", "So the final value is {}.", "Done, {}.")
_OTHER = {"+": "-", "-": "+"}
_VERBS = {"+": "add", "-": "subtract"}


def base_response(problem: Problem, rng: random.Random) -> str:
    """A direct answer or a short worked solution; no think block and no hesitation."""
    answer = _answer(problem, rng)
    if problem.kind == "fact":
        reason = rng.choice(CLASSES[problem.answer][1])
        return f"{_capital(problem.steps[0].expression)} {reason}. {answer}" if rng.random() < WORKED_SHARE else answer
    share = WORKED_SHARE if len(problem.steps) <= LONGEST_WORKED else WORKED_SHARE_LONG
    if rng.random() >= share:
        return answer
    return " ".join([*(_plain(i, step, rng) for i, step in enumerate(problem.steps)), answer])


def target_response(problem: Problem, rng: random.Random) -> str:
    """``<think>``, a newline, a trace that slips, hesitates and corrects itself, ``</think>``, the answer."""
    thoughts = [rng.choice(_OPENINGS)] if rng.random() < 0.8 else []
    thoughts += _weigh_fact(problem, rng) if problem.kind == "fact" else _work(problem.steps, rng)
    if rng.random() < 0.4:
        thoughts.append(rng.choice(_ENDINGS).format(_say(problem.steps[-1], rng)))
    if rng.random() < 0.6:
        thoughts.append(rng.choice(_CLOSINGS).format(problem.answer))
    return f"<think>\n{' '.join(thoughts)}</think>{_answer(problem, rng)}"


def _work(steps: Sequence[Step], rng: random.Random) -> list[str]:
    thoughts = []
    for i, step in enumerate(steps):
        chance = rng.random()
        if chance < SLIP_SHARE and (slip := _slip(step, rng)):
            thoughts += slip
            continue
        thoughts.append(_plain(i, step, rng))
        if chance > 1 - CHECK_SHARE:
            thoughts.append(rng.choice(_CHECKS).format(_say(step, rng)))
    return thoughts


def _slip(step: Step, rng: random.Random) -> list[str]:
    """A wrong version of a step and the words that notice it: another operation, or a misread number."""
    words = step.expression.split(" ")
    if len(words) != 3 or words[1] not in _OTHER:
        return []
    left, op, right = words
    if rng.random() < 0.5:
        op, notice = _OTHER[op], rng.choice(_MISREADS).format(_VERBS[op])
    else:
        right, notice = str(rng.randint(2, 9)), rng.choice(_NOTICES).format(right)
    result = int(left) + int(right) * (1 if op == "+" else -1)
    if (right == words[2] and op == words[1]) or not 0 <= result <= LARGEST:
        return []
    slipped = Step(f"{left} {op} {right}", str(result))
    return [
        f"{rng.choice(_GUESSES)} {_say(slipped, rng)}.",
        notice,
        rng.choice(_CORRECTIONS).format(_say(step, rng)),
    ]


def _weigh_fact(problem: Problem, rng: random.Random) -> list[str]:
    thing, right = problem.steps[0]
    thoughts = [f"{_capital(thing)} {rng.choice(CLASSES[right][1])}."]
    if rng.random() < 0.5:
        doubt = rng.choice(("Wait, is it {}? No.", "Hmm, could it be {}? I think not.", "But {} does not fit."))
        thoughts.insert(rng.randrange(2), doubt.format(problem.distractor))
    if rng.random() < 0.4:
        thoughts.append(rng.choice(("Also, it", "Alternatively, it", "And it")) + f" {rng.choice(CLASSES[right][1])}.")
    return thoughts


def _plain(i: int, step: Step, rng: random.Random) -> str:
    """A step as both models write it: what sets the target apart lies around its steps."""
    return f"{rng.choice(_FIRST if i == 0 else _LEADS)} {_say(step, rng)}."


def _say(step: Step, rng: random.Random) -> str:
    return f"{step.expression}{rng.choice(_SAYS)}{step.result}"


def _answer(problem: Problem, rng: random.Random) -> str:
    return rng.choice(_ANSWERS[problem.domain]).format(problem.answer)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
