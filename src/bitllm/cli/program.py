"""The command line. A user's mistake gives one line and exit status 2; ``--debug`` shows the traceback."""

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import tyro
from pydantic import ValidationError

from bitllm import __version__
from bitllm.cli import data, demo, evaluation, model, prepare, results, tasks, train
from bitllm.cli.examples import under_help
from bitllm.cli.recipes import with_recipe
from bitllm.config import StrictConfig, first_problem
from bitllm.errors import BitLlmError, ConfigError, StoppedError

_INTERRUPTED, _READER_GONE, _TERMINATED = 130, 141, 143

_COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "reproduce": demo.reproduce,
    "simulate": data.simulate,
    "prepare nsd": data.prepare_nsd,
    "split": data.split,
    "prepare mindeye": prepare.prepare_mindeye,
    "prepare mindeye2": prepare.prepare_mindeye2,
    "prepare mindllm": prepare.prepare_mindllm,
    "prepare algonauts": prepare.prepare_algonauts,
    "prepare glmsingle": prepare.prepare_glmsingle,
    "prepare bold5000": prepare.prepare_bold5000,
    "prepare mosaic": prepare.prepare_mosaic,
    "prepare table": prepare.prepare_table,
    "prepare haxby": prepare.prepare_haxby,
    "tasks": tasks.tasks,
    "join": data.join,
    "inspect": data.inspect,
    "audit": data.audit,
    "embed": train.embed,
    "train": train.train,
    "score": evaluation.score,
    "evaluate": evaluation.evaluate,
    "ask": results.ask,
    "explore": results.explore,
    "report": results.report,
    "export": results.export,
    "params": model.params,
    "preflight": model.preflight,
}
_GROUPS = {name.split()[0] for name in _COMMANDS if " " in name}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit status 2 for a user's mistake, 130 if interrupted, 143 on SIGTERM."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if len(words) > 1 and words[0] in _GROUPS:
        words = [" ".join(words[:2]), *words[2:]]
    _quiet_libraries()
    if words in (["--version"], ["-V"]):
        print(f"bitllm {__version__}")
        return
    try:
        _run(words)
    except SystemExit as end:
        if not end.code and {"-h", "--help"} & set(words):
            print(f"\n{under_help(words[0] if words[0] in _COMMANDS else None)}")
        raise
    except BrokenPipeError:  # whoever read us, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_READER_GONE)
    except StoppedError as error:
        print(f"bitllm: {error}", file=sys.stderr)
        sys.exit(_TERMINATED)
    except BitLlmError as error:
        if debug:
            raise
        print(f"bitllm: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if debug or error.filename is None:  # without a file it is no mistake of the user's
            raise
        what = f"{error.filename}: expected a path that can be used, found: {error.strerror}"
        print(f"bitllm: {what}; check the path and its permissions", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\nbitllm: interrupted; run the same command again to resume after the finished steps",
            file=sys.stderr,
        )
        sys.exit(_INTERRUPTED)


def _run(words: list[str]) -> None:
    name = words[0] if words else ""
    if name in _COMMANDS:
        command, rest = with_recipe(name, _bound(_COMMANDS[name]), words[1:])
        try:
            call = tyro.cli(command, args=rest, prog=f"bitllm {name}")
        except ValidationError as error:  # of a rule about several values of the recipe
            raise ConfigError(f"bitllm {name}: {first_problem(StrictConfig, error)}") from None
        call()
        return
    tyro.extras.subcommand_cli_from_dict(
        {name: _only_named(command) for name, command in _COMMANDS.items()},
        args=words,
        prog="bitllm",
        description="Decode brain activity (fMRI) into language, with controls that show what comes from it.",
    )


def _bound(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """A command with its arguments, to run later: errors in arguments are thus separate from errors of the command."""

    @wraps(command)
    def bound(*args: Any, **options: Any) -> Callable[[], None]:
        return partial(command, *args, **options)

    return bound


def _only_named(command: Callable[..., None]) -> Callable[[], None]:
    """A command without its options, for the list of commands."""

    def named() -> None:
        raise AssertionError("only its help is shown")

    named.__doc__ = (command.__doc__ or "").split("\n\n", maxsplit=1)[0]
    return named


def _quiet_libraries() -> None:
    """Silence the libraries' bars and notices, and prevent network access unless it is requested."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
