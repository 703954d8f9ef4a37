"""Commands with a recipe: its values become the defaults of the command's dotted options."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import tyro

from bitllm.errors import ConfigError

_FROM_OPTION = ("demo",)
_FROM_POSITION = ("train", "params", "preflight")


def with_recipe(
    name: str, command: Callable[..., Any], words: list[str]
) -> tuple[Callable[..., Any], list[str]]:
    """Read the recipe in a command line and make its values the defaults of the command's options.

    Parameters
    ----------
    name
        Name of the command.
    command
        Function of the command; with a recipe it has a parameter `recipe`.
    words
        Words after the command's name. `demo` has an option `--recipe`; for the others the recipe is the first word.

    Returns
    -------
    tuple
        The command with the recipe as default, and the words without the recipe. Both are unchanged for a command
        without a recipe.
    """
    if name in _FROM_OPTION:
        recipe, rest = _option(words)
    elif name in _FROM_POSITION:
        recipe, rest = _position(name, words)
    else:
        return command, words
    from bitllm.pipeline.recipe import Recipe, read_recipe

    # name="" drops the prefix `--recipe.` of the options
    command.__annotations__["recipe"] = Annotated[Recipe, tyro.conf.arg(name="")]
    return partial(command, recipe=read_recipe(recipe)), rest


def _option(words: list[str]) -> tuple[str, list[str]]:
    for place, word in enumerate(words):
        if word.startswith("--recipe="):
            return word.partition("=")[2], [*words[:place], *words[place + 1 :]]
        if word == "--recipe":
            if place + 1 == len(words):
                raise ConfigError(
                    "demo: expected a recipe after --recipe, found nothing; name one, e.g. smoke"
                )
            return words[place + 1], [*words[:place], *words[place + 2 :]]
    return "demo", words


def _position(command: str, words: list[str]) -> tuple[str, list[str]]:
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    if {"-h", "--help"} & set(words):
        return "demo", words
    from bitllm.pipeline.recipe import PACKAGED

    raise ConfigError(
        f"{command}: expected a recipe first ({', '.join(PACKAGED)} or a YAML file), found "
        f"{words[0] if words else 'nothing'}; e.g. bitllm {command} demo"
    )
