"""Common parts of all configurations: strict keys, YAML, and errors that name the nearest valid key."""

import difflib
import math
import re
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bitllm.errors import ConfigError, DataError
from bitllm.files import normalized_name, read_json, read_text

_LARGEST_NUMBER = 2**53
"""Larger sizes overflow in torch and are not exact as floats."""

ConfigT = TypeVar("ConfigT", bound="StrictConfig")


class StrictConfig(BaseModel):
    """A configuration that refuses unknown keys and wrong types."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _fit_words(cls, values: Any) -> Any:
        """Keep numbers as text for text fields, and turn a single word into a list of one."""
        if not isinstance(values, dict):
            return values
        for key, value in values.items():
            if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
                raise ValueError(
                    f"`{key}`: expected a number up to 2**53, found one of {len(str(abs(value)))} digits"
                )
        fields = cls.model_fields
        return {
            key: _fitted(value, fields[key].annotation) if key in fields else value
            for key, value in values.items()
        }

    @classmethod
    def parse(cls: type[ConfigT], values: dict[str, Any], *, source: str = "configuration") -> ConfigT:
        """Check ``values`` against the fields of this configuration."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{source}: {first_problem(cls, error)}") from None

    @classmethod
    def read(cls: type[ConfigT], path: Path) -> ConfigT:
        """Read this configuration from a YAML or JSON file."""
        return cls.parse(read_yaml(path, is_written=True), source=str(path))

    def write(self, path: Path) -> None:
        """Write this configuration as YAML."""
        Path(path).write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def read_yaml(path: Path, *, is_written: bool = False) -> dict[str, Any]:
    """Keys and values of a YAML file in UTF-8, or of a JSON file (by its extension).

    Keys are always text: ``01`` is not a number. With ``is_written`` numbers remember how they were written, so that
    a text field can have the value ``01`` or ``1.10``.
    """
    what = "a YAML configuration"
    try:
        is_json = Path(path).suffix.lower() == ".json"
        values = (
            _composed(read_json(path, what))
            if is_json
            else parse_yaml(read_text(path, what), str(path), is_written)
        )
    except DataError as error:
        raise ConfigError(str(error)) from None
    except yaml.YAMLError as error:
        reason = str(error).replace("\n", " ")
        raise ConfigError(
            f"{path}: expected {what}, found text that does not parse ({reason}); correct it"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected YAML with `key: value` lines, found {type(values).__name__}; write such lines"
        )
    return values


def parse_yaml(text: str, source: str, is_written: bool = True) -> Any:
    """The value of a YAML text."""
    loader = (_WrittenLoader if is_written else _UniqueKeysLoader)(text)
    loader.source = source
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _composed(content: Any) -> Any:
    """The same JSON with keys in Unicode's composed form and without surrounding spaces, like those of YAML."""
    if isinstance(content, dict):
        return {normalized_name(key): _composed(value) for key, value in content.items()}
    return [_composed(value) for value in content] if isinstance(content, list) else content


class _UniqueKeysLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with text keys that must be unique; dates are text."""

    source: str

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            # PyYAML would turn a subject `01` into the number 1, and drop the first of two equal keys
            key.tag, key.value = "tag:yaml.org,2002:str", normalized_name(key.value)
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigError(
                    f"{self.source}: expected each key once, found `{key.value}` in the lines {lines[key.value]} and "
                    f"{line}; remove or rename one"
                )
            lines[key.value] = line
        return node


_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
# `no`, `on` and dates are text; a field that is a boolean takes `yes` and `no` all the same
_UniqueKeysLoader.yaml_implicit_resolvers = {
    first: [
        (tag, _BOOLEAN if tag.endswith(":bool") else pattern)
        for tag, pattern in found
        if not tag.endswith(":timestamp")
    ]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _WrittenLoader(_UniqueKeysLoader):
    """A loader that keeps the written form of numbers."""


class _WrittenInt(int):
    written: str


class _WrittenFloat(float):
    written: str


def _written_int(loader: yaml.SafeLoader, node: Any) -> _WrittenInt:
    value = _WrittenInt(loader.construct_yaml_int(node))
    value.written = node.value
    return value


def _written_float(loader: yaml.SafeLoader, node: Any) -> _WrittenFloat:
    value = _WrittenFloat(loader.construct_yaml_float(node))
    value.written = node.value
    return value


_WrittenLoader.add_constructor("tag:yaml.org,2002:int", _written_int)
_WrittenLoader.add_constructor("tag:yaml.org,2002:float", _written_float)


def _fitted(value: Any, annotation: Any) -> Any:
    """A YAML value in the form of a field: text as written, one word as a list of one."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    is_name = any(_is_text(kind) for kind in kinds) and not {int, float, bool} & set(kinds)
    if is_name and isinstance(value, _WrittenInt | _WrittenFloat):
        return value.written
    for kind in kinds:
        inner = get_args(kind)
        if get_origin(kind) is tuple and inner[1:] == (...,):
            if _is_text(inner[0]) and isinstance(value, str | _WrittenInt | _WrittenFloat):
                value = (value,)
            if isinstance(value, list | tuple):
                return tuple(_fitted(one, inner[0]) for one in value)
        if get_origin(kind) is dict and isinstance(value, dict):
            return {key: _fitted(one, inner[1]) for key, one in value.items()}
    return value


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    return kind in (str, Path)


def require_number(
    option: str, value: float | int, *, least: float | int, most: float | int = math.inf
) -> None:
    """Refuse an option's number that is NaN or out of range."""
    if not least <= value <= most:
        span = f"at least {least}" if most == math.inf else f"{least} to {most}"
        found = str(value) if len(str(value)) < 30 else f"one of {len(str(value))} digits"
        raise ConfigError(f"{option}: expected a number, {span}, found {found}; name another")


LARGEST_SEED = 2**32 - 1
"""Largest seed of numpy's legacy generator, which `transformers.set_seed` sets."""
LONGEST_CAPTION = 2**16
"""Longest caption, in tokens."""


def nearest(word: str, valid: list[str]) -> str:
    """A phrase with the valid word nearest to ``word``, or with all valid words."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"valid: {', '.join(sorted(valid))}"


def first_problem(config: type[BaseModel], error: ValidationError) -> str:
    """The first of pydantic's errors on one line: the key, what was expected, what was found."""
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
