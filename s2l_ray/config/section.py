"""What every section of the config has in common."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

MAX_SEED = 2**63 - 1
"""What torch and numpy both take."""


class Section(BaseModel):
    """Base of every section: immutable, and an unknown key is an error."""

    # Defaults go through the same door: 3 and 3.0 are one setting, written or not.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` where a number stands: Python would read it as 1."""
        expected = cls.model_fields[info.field_name or ""].annotation
        items = value if isinstance(value, list | tuple) else (value,)
        if expected is not bool and any(isinstance(item, bool) for item in items):
            raise ValueError("true and false are no values of this key")
        return value


def section_in(annotation: Any) -> type[Section] | None:
    """Return the section that a field holds, be it one of several types or inside a list."""
    if arguments := get_args(annotation):
        return next((found for argument in arguments if (found := section_in(argument))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
