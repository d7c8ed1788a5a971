"""Define the base of all sections of a recipe: strict validation, and rules between keys that are written as data.

A `Rule` is relative to the section it belongs to and never knows that section's full path; a section may therefore
occur several times in a recipe. `Section.conflicts(at)` applies the rules of a section with the path `at`, and those of
the sections inside it. The docs list the same rules (tools/reference.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

Key = tuple[str | int, ...]  # ("compare", "judges", 1)
S_contra = TypeVar("S_contra", contravariant=True)


@dataclass(frozen=True)
class Conflict:
    """A broken rule: the key to show, what is wrong, a way out, and the other keys that it depends on."""

    key: str
    what: str
    fix: str
    about: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule(Generic[S_contra]):
    """A rule between keys of a section. Keys are dotted paths relative to that section ("" is the section itself).

    `broken` returns whether a section breaks the rule. Where a rule can be broken several times at once, it returns a
    list with the values of each time: [{"judge": "me"}, {"judge": "you"}].

    `key`, `what` and `fix` may hold {placeholders}: a value that `broken` returned, or an attribute of the section
    ({hidden_size}, {ppo.batch_size}; lists are joined by commas), or {at}, the section's full path, or {key}, the last
    name of the rule's key.
    """

    key: str
    what: str
    fix: str
    broken: Callable[[S_contra], bool | Sequence[Mapping[str, str]]]
    about: tuple[str, ...] = ()

    def conflicts(self, section: S_contra, at: str) -> Iterator[Conflict]:
        """Return one conflict for each time that the section, which has the path `at`, breaks this rule."""
        broken = self.broken(section)
        for values in [{}] if broken is True else broken or ():
            fill = _Filler(section, values, {"at": at, "key": self.key.rpartition(".")[2]})
            about = tuple(_below(at, key) for key in self.about)
            yield Conflict(_below(at, fill.format(self.key)), fill.format(self.what), fill.format(self.fix), about)


class Section(BaseModel):
    """Base class of sections: unknown keys fail, "3" is not a number, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    RULES: ClassVar[tuple[Rule[Any], ...]] = ()  # in addition to the base classes' rules

    def conflicts(self, at: str = "") -> Iterator[Conflict]:
        """List all broken rules of this section, which has the path `at`, and of the sections inside it."""
        yield from self.broken_rules(at)
        yield from self.inner_conflicts(at)

    def broken_rules(self, at: str) -> Iterator[Conflict]:
        """List the broken rules of this section itself, those of its base classes first."""
        for kind in reversed(type(self).__mro__):
            for rule in vars(kind).get("RULES", ()):
                yield from rule.conflicts(self, at)

    def inner_conflicts(self, at: str) -> Iterator[Conflict]:
        """List the broken rules of the sections inside this one, also of sections in a list."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, Section):
                yield from value.conflicts(_below(at, name))
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Section):
                        yield from item.conflicts(_below(at, f"{name}.{index}"))

    def as_input(self) -> dict[str, Any]:
        """Return the keys that a stage's result depends on, for the fingerprint of its section: by default all."""
        return self.model_dump(mode="json")

    def is_set(self, key: str) -> bool:
        """Tell whether the recipe states the key, even if it states the default."""
        return key in self.model_fields_set


@dataclass(frozen=True)
class DataNeed:
    """A data set that a stage cannot do without: what it is for, and another way out than to add it."""

    name: str
    use: str
    otherwise: str = ""


class Stage(Section):
    """A section that makes a stage of the run."""

    NEEDS: ClassVar[tuple[DataNeed, ...]] = ()  # the recipe is refused without these data sets

    @property
    def needs_data(self) -> bool:
        """Whether the stage, with the keys that it has, reads the data sets of `NEEDS`."""
        return True

    @property
    def trains(self) -> bool:
        """Tell whether the stage trains weights. A training stage with a key `lora` inherits the recipe's `lora`."""
        return True


def keys_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the keys of a section as a recipe writes them (`from` for a field called `start`), with their fields."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def without(data: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Remove keys from a dumped section that would be refused when the resolved recipe is read again."""
    return {key: value for key, value in data.items() if key not in keys}


def _below(at: str, key: str) -> str:
    """Return the full path of a key of the section at the path `at`."""
    return f"{at}.{key}" if at and key else at or key


class _Filler(Formatter):
    """Fill placeholders from the first of its sources that has the name: mappings, then attributes of a section."""

    def __init__(self, section: object, *values: Mapping[str, str]) -> None:
        self.section = section
        self.values = values

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        for values in self.values:
            if key in values:
                return values[str(key)]
        return getattr(self.section, str(key))

    def format_field(self, value: Any, format_spec: str) -> Any:
        return super().format_field(", ".join(value) if isinstance(value, list) else value, format_spec)
