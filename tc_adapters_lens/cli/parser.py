"""jsonargparse, with errors of one line that name the nearest right word."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

import jsonargparse

from tc_adapters_lens.errors import ConfigError, did_you_mean


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples; says "required" and the default, but no Python types."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        if not (notes := re.search(r" \((required, )?type: .*?(, default: (?P<default>.*))?\)\s*$", text, re.DOTALL)):
            return text
        kept = "required" if notes[1] else f"default: {notes['default']}"
        return text[: notes.start()] + (f" ({kept})" if kept not in ("default: null", "default: None") else "")


class Parser(jsonargparse.ArgumentParser):
    """Raises ConfigError where argparse would print the usage and exit."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)
        self.chosen: Parser = self  # the verb's parser, whose options an unknown one is compared with

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(self._explain(message)) from ex

    def add_verbs(self, summaries: dict[str, str]) -> dict[str, Parser]:
        """One sub-parser per verb, returned by name."""
        verbs = self.add_subcommands(dest="verb", metavar="VERB", title="verbs", description="")
        parsers = {}
        for name, summary in summaries.items():
            parsers[name] = Parser(description=summary)
            verbs.add_subcommand(name, parsers[name], help=summary)
            parsers[name].prog = f"{self.prog} {name}"
        return parsers

    def _explain(self, message: str) -> str:
        """From argparse's and jsonargparse's words to the rule, the value and the fix, in one line."""
        help_line = f"`{self.chosen.prog} --help` lists them."
        if found := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
            return self._explain_unknown(found[1].split())
        if found := re.match(r"argument VERB: invalid choice: '(.*)' \(choose from (.*)\)", message):
            verbs = re.findall(r"[\w-]+", found[2])
            nearest = did_you_mean(found[1], verbs)
            return f"The verb must be one of {', '.join(verbs)}. Got '{found[1]}'.{nearest}"
        if re.match(r'expected "([\w-]+\.)*verb" to be one of', message):
            return "A verb is needed. " + help_line
        if found := re.match(r"the following arguments are required: (.*)", message):
            missing = ", ".join(map(self._as_typed, found[1].split(", ")))
            return f"{missing} must be given. {help_line}"
        if found := re.match(r'Parser key "(.*?)":\s*(?:Expected an? (.*?)\. Got value: (.*))', message, re.DOTALL):
            option, expected = found[1], _readable_type(found[2])
            value, choices = found[3].strip(), re.findall(r"'(.*?)'", expected)
            return f"{self._as_typed(option)} must be {expected}. Got {value!r}.{did_you_mean(value, choices)}"
        return " ".join(message.split())

    def _as_typed(self, key: str) -> str:
        """An argument, named with its verbs before it, as it is typed."""
        name = key.removeprefix("".join(f"{verb}." for verb in self.chosen.prog.split()[1:]))
        for action in self.chosen._actions:
            if action.dest == name:
                return action.option_strings[0] if action.option_strings else str(action.metavar)
        return f"--{name}"

    def _explain_unknown(self, words: list[str]) -> str:
        word = next((word for word in words if word.startswith("-")), words[0])
        name = word.split("=")[0]
        prog = self.chosen.prog
        if not name.startswith("-"):
            return f"'{name}' is not expected here. `{prog} --help` shows the usage."
        known = [option for action in self.chosen._actions for option in action.option_strings]
        return f"{name} is not an option of {prog}.{did_you_mean(name, known)} `{prog} --help` lists them."


def _readable_type(name: str) -> str:
    """ "typing.Literal['a', 'b']" -> "'a' or 'b'", "<class 'int'>" -> "an int"."""
    if literal := re.match(r"(?:typing\.)?Literal\[(.*)\]", name):
        return " or ".join(part.strip() for part in literal[1].split(","))
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name)
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
