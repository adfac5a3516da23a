"""The toy pair's problems: a seeded generator over maths, code and science, and the answer checker.

A problem is a short chain of small steps. Each step alone is easy for a model of a million parameters; three
to six of them at once, without writing them down, are not: that is what makes thinking pay. Proportions are
the paper's (71% maths, 21% code, 8% science). How the two models answer is in ``responses``.

Held-out problems are set apart by construction: a hash of what has to be computed decides the side, so no
rephrasing of a held-out problem is ever trained on.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

DOMAIN_WEIGHTS = {"math": 71, "code": 21, "science": 8}
LARGEST = 99  # every number in a problem or a solution lies in 0..LARGEST: one token each
HELD_OUT_SHARE = 10  # one problem in this many is held out

HESITATIONS = ("wait", "hmm", "but", "alternatively")


class Step(NamedTuple):
    """One easy step: what is worked out, and what comes of it ("23 + 7", "30")."""

    expression: str
    result: str


class Problem(NamedTuple):
    """A question with its true answer.

    Attributes:
        question: the text a user would write.
        answer: the true answer, one word or number.
        domain: "math", "code" or "science".
        kind: which family of the domain, for example "loop".
        steps: the chain that leads to the answer; empty when read back from a file.
        distractor: the wrong class a "fact" question offers beside the right one; else empty.
    """

    question: str
    answer: str
    domain: str
    kind: str = ""
    steps: tuple[Step, ...] = ()
    distractor: str = ""


def is_held_out(problem: Problem) -> bool:
    """True for the tenth of all problems never trained on: what is computed decides, not how it is asked."""
    key = f"{problem.domain}|{problem.steps}|{problem.distractor}"
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_SHARE == 0


def generate(seed: int, held_out: bool, n_steps: tuple[int, int] = (3, 6)) -> Iterator[Problem]:
    """An endless seeded stream of problems from one side of the split.

    Args:
        seed: the same seed gives the same stream.
        held_out: which side of the split to draw from.
        n_steps: fewest and most steps of a maths or code problem.
    """
    rng = random.Random(seed)
    domains, weights = list(DOMAIN_WEIGHTS), list(DOMAIN_WEIGHTS.values())
    while True:
        (domain,) = rng.choices(domains, weights)
        while True:  # the domain is kept while a problem is redrawn, so rejection cannot skew the proportions
            problem = rng.choice(_FAMILIES[domain])(rng, rng.randint(*n_steps))
            if is_held_out(problem) == held_out:
                break
        yield problem


def parse_answer(response: str) -> str | None:
    """The final answer a response states, or None.

    Only text after ``</think>`` counts; a think block never closed means no answer.
    """
    if "<think>" in response and "</think>" not in response:
        return None
    stated = _ANSWER.findall(response.rpartition("</think>")[2])
    return stated[-1] if stated else None


_ANSWER = re.compile(r"(?:[Aa]nswer is|Answer:|[Rr]esult is|prints|get) (\w+)")


# ------------------------------------------------------------------------------------------ chains of numbers

_NAMES = (
    "Ann",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Iris",
    "Jonas",
    "Kim",
    "Liam",
    "Mara",
    "Noah",
)
_THINGS = ("apples", "books", "coins", "stamps", "marbles", "shells", "cards", "pens", "eggs", "stones")
_VARIABLES = ("x", "y", "n", "total", "count")
_LISTS = ("a", "nums", "values", "data")
_ASK_VALUE = ("What is {}?", "Compute {}.", "Evaluate {}.", "Find the value of {}.", "Work out {}.")
_ASK_CODE = (
    "What does this print?\n{}",
    "What is printed by this code?\n{}",
    "Trace this program.\n{}",
    "Run this code in your head.\n{}",
)
_SAY_ADD = ("add {}", "increase it by {}", "put {} on top")
_SAY_SUBTRACT = ("subtract {}", "take away {}", "decrease it by {}")
_STORY_ADD = ("buys {} more", "finds {} more", "is given {} more")
_STORY_SUBTRACT = ("loses {}", "gives away {}", "sells {}")


def _calculate(left: int, op: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[op]


def _chain(rng: random.Random, n_steps: int, ops: str) -> tuple[int, list[tuple[str, int]], tuple[Step, ...]]:
    """A start, a list of (op, operand) and the steps, every value within 0..LARGEST.

    No operand comes twice and none is as large as the start, so the next number to read is never in doubt.
    """
    while True:
        start = value = rng.randint(20, 50)
        moves: list[tuple[str, int]] = []
        steps: list[Step] = []
        for operand in rng.sample(range(2, 13), n_steps):
            op = rng.choice(ops) if operand <= 3 else rng.choice(ops.replace("*", ""))
            result = _calculate(value, op, operand)
            moves.append((op, operand))
            steps.append(Step(f"{value} {op} {operand}", str(result)))
            value = result
        if all(0 <= int(step.result) <= LARGEST for step in steps):
            return start, moves, tuple(steps)


def _expression(rng: random.Random, n_steps: int) -> Problem:
    start, moves, steps = _chain(rng, n_steps, "++-")
    text = " ".join([str(start), *(f"{op} {operand}" for op, operand in moves)])
    return Problem(rng.choice(_ASK_VALUE).format(text), steps[-1].result, "math", "expression", steps)


def _instructions(rng: random.Random, n_steps: int) -> Problem:
    start, moves, steps = _chain(rng, n_steps, "++--*")
    said = []
    for op, operand in moves:
        if op == "*":
            said.append("double it" if operand == 2 else "triple it")
        else:
            said.append(rng.choice(_SAY_ADD if op == "+" else _SAY_SUBTRACT).format(operand))
    lead = rng.choice(("Start with {}", "Begin at {}", "Take {}")).format(start)
    ask = rng.choice(("What do you get?", "What is the result?", "Where do you end?"))
    return Problem(f"{lead}, {', '.join(said)}. {ask}", steps[-1].result, "math", "instructions", steps)


def _story(rng: random.Random, n_steps: int) -> Problem:
    start, moves, steps = _chain(rng, n_steps, "++--")
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    said = [rng.choice(_STORY_ADD if op == "+" else _STORY_SUBTRACT).format(operand) for op, operand in moves]
    question = f"{name} has {start} {thing}. {name} {', '.join(said)}. How many {thing} are left?"
    return Problem(question, steps[-1].result, "math", "story", steps)


# ------------------------------------------------------------------------------------------------------- code


def _code(rng: random.Random, lines: list[str], kind: str, steps: tuple[Step, ...]) -> Problem:
    return Problem(rng.choice(_ASK_CODE).format("\n".join(lines)), steps[-1].result, "code", kind, steps)


def _assignments(rng: random.Random, n_steps: int) -> Problem:
    start, moves, steps = _chain(rng, n_steps, "+-*")
    name, short = rng.choice(_VARIABLES), rng.random() < 0.5
    body = [f"{name} {op}= {operand}" if short else f"{name} = {name} {op} {operand}" for op, operand in moves]
    return _code(rng, [f"{name} = {start}", *body, f"print({name})"], "assignments", steps)


def _loop(rng: random.Random, n_steps: int) -> Problem:
    start, operand, name = rng.randint(0, 20), rng.randint(2, 9), rng.choice(_VARIABLES)
    values = [start + operand * i for i in range(n_steps + 1)]
    steps = tuple(Step(f"{a} + {operand}", str(b)) for a, b in itertools.pairwise(values))
    body = [f"for i in range({n_steps}):", f"    {name} += {operand}"]
    return _code(rng, [f"{name} = {start}", *body, f"print({name})"], "loop", steps)


def _branch(rng: random.Random, n_steps: int) -> Problem:
    start, moves, steps = _chain(rng, max(1, n_steps - 2), "+-")
    name, value = rng.choice(_VARIABLES), int(steps[-1].result)
    limit = min(LARGEST, max(0, value + rng.choice((-1, 1)) * rng.randint(1, 9)))
    taken, other = rng.randint(2, 9), rng.randint(2, 9)
    holds = value > limit
    final = min(LARGEST, value + taken) if holds else value + other
    if final > LARGEST or (holds and value + taken > LARGEST):
        return _branch(rng, n_steps)
    decided = Step(f"{value} > {limit}", str(holds))
    last = Step(f"{value} + {taken if holds else other}", str(final))
    lines = [
        f"{name} = {start}",
        *(f"{name} {op}= {operand}" for op, operand in moves),
        f"if {name} > {limit}:",
        f"    {name} += {taken}",
        "else:",
        f"    {name} += {other}",
        f"print({name})",
    ]
    return _code(rng, lines, "branch", (*steps, decided, last))


def _list_fold(rng: random.Random, n_steps: int) -> Problem:
    function = rng.choice(("sum", "max"))
    items = rng.sample(range(1, 13), n_steps + 1)
    value, steps = items[0], []
    for item in items[1:]:
        result = value + item if function == "sum" else max(value, item)
        steps.append(Step(f"{value} + {item}" if function == "sum" else f"max({value}, {item})", str(result)))
        value = result
    if value > LARGEST:
        return _list_fold(rng, n_steps)
    name = rng.choice(_LISTS)
    lines = [f"{name} = [{', '.join(map(str, items))}]", f"print({function}({name}))"]
    if rng.random() < 0.3:
        lines = [f"{name} = [{', '.join(map(str, items[:-1]))}]", f"{name}.append({items[-1]})", lines[1]]
    return _code(rng, lines, f"list_{function}", tuple(steps))


# ---------------------------------------------------------------------------------------------------- science

_UNITS = (
    ("days", "weeks", 7),
    ("hours", "days", 24),
    ("inches", "feet", 12),
    ("years", "decades", 10),
    ("legs", "spiders", 8),
    ("legs", "beetles", 6),
    ("protons", "carbon atoms", 6),
    ("protons", "oxygen atoms", 8),
)
CLASSES = {
    "fish": (
        ("trout", "salmon", "tuna", "shark", "carp", "herring"),
        ("has gills", "breathes water", "has fins"),
    ),
    "bird": (
        ("eagle", "robin", "duck", "owl", "parrot", "penguin"),
        ("has feathers", "has a beak", "lays eggs"),
    ),
    "mammal": (
        ("whale", "horse", "bat", "mouse", "dolphin", "tiger"),
        ("feeds milk", "has fur or hair", "has lungs"),
    ),
    "insect": (
        ("ant", "bee", "beetle", "moth", "fly", "wasp"),
        ("has six legs", "has antennae", "has three body parts"),
    ),
    "metal": (
        ("iron", "copper", "gold", "zinc", "silver", "lead"),
        ("conducts electricity", "is shiny", "bends"),
    ),
    "gas": (
        ("oxygen", "helium", "neon", "nitrogen", "argon", "hydrogen"),
        ("fills its container", "is very light", "flows"),
    ),
}


def _units(rng: random.Random, n_steps: int) -> Problem:
    part, whole, size = rng.choice(_UNITS)
    count = rng.randint(2, (LARGEST - 9) // size)
    product, more, fewer = count * size, rng.randint(2, 9), rng.randint(2, 9)
    steps = [Step(f"{count} * {size}", str(product)), Step(f"{product} + {more}", str(product + more))]
    question = f"How many {part} are there in {count} {whole} and {more} {part} more?"
    if n_steps > 3:
        steps.append(Step(f"{product + more} - {fewer}", str(product + more - fewer)))
        question = f"How many {part} are there in {count} {whole} and {more} {part} more, less {fewer}?"
    return Problem(question, steps[-1].result, "science", "units", tuple(steps))


def _fact(rng: random.Random, n_steps: int) -> Problem:
    right, wrong = rng.sample(list(CLASSES), 2)
    thing = rng.choice(CLASSES[right][0])
    first, second = rng.sample((right, wrong), 2)
    question = rng.choice(("Which is {}: {} or {}?", "Is {} {} or {}?", "Sort {} under {} or {}.")).format(
        thing, first, second
    )
    return Problem(question, right, "science", "fact", (Step(thing, right),), wrong)


_FAMILIES: dict[str, tuple[Callable[[random.Random, int], Problem], ...]] = {
    "math": (_expression, _instructions, _story),
    "code": (_assignments, _loop, _branch, _list_fold),
    "science": (_units, _fact),
}
