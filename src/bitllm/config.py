"""What all configurations share: strict keys, YAML, and errors that name the nearest valid key."""

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bitllm.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="StrictConfig")


class StrictConfig(BaseModel):
    """A configuration that refuses unknown keys and wrong types."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def parse(cls: type[ConfigT], values: dict[str, Any], *, source: str = "configuration") -> ConfigT:
        """Check ``values`` against the fields of this configuration.

        Raises
        ------
        ConfigError
            One line that names the key, what was expected and, for an unknown key, the nearest valid one.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{source}: {_first_problem(cls, error)}") from None

    @classmethod
    def read(cls: type[ConfigT], path: Path) -> ConfigT:
        """Read this configuration from a YAML file.

        Raises
        ------
        ConfigError
            If the file is missing, is not YAML, or holds an unknown key or a wrong value.
        """
        return cls.parse(read_yaml(path), source=str(path))

    def write(self, path: Path) -> None:
        """Write this configuration as YAML."""
        Path(path).write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises
    ------
    ConfigError
        If the file is missing, is not YAML, or does not hold keys and values.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a YAML configuration, found no file; check the path") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise ConfigError(
            f"{path}: expected a YAML configuration, found text that does not parse ({reason})"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected YAML with `key: value` lines, found {type(values).__name__}")
    return values


def nearest(word: str, valid: list[str]) -> str:
    """A phrase that names the valid word nearest to ``word``, or all of them."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"valid: {', '.join(sorted(valid))}"


def _first_problem(config: type[BaseModel], error: ValidationError) -> str:
    problem = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        owner = _owner(config, problem["loc"][:-1])
        return f"unknown key `{where}`; {nearest(str(problem['loc'][-1]), list(owner.model_fields))}"
    said = problem["msg"].removeprefix("Value error, ")
    said = (f"`{where}`: " if where else "") + said[0].lower() + said[1:]
    if problem["type"] in ("missing", "value_error") and isinstance(problem["input"], dict):
        return said  # a rule about several keys says itself what is wrong
    return f"{said}, found {problem['input']!r}"


def _owner(config: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for key in location:
        field = config.model_fields.get(str(key))
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            break
        config = inner[0]
    return config
