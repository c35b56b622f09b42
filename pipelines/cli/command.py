"""The class of all commands: plain help, whose texts come from the fields of the settings."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from typer.core import TyperCommand

from featbench.pipelines.cli.options import Setting, settings_by_name

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

logger = logging.getLogger(__name__)


class PlainCommand(TyperCommand):
    """Shows arguments in help as their metavar alone, and describes options by the settings that they override."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                setattr(parameter, "display_type_rich", lambda ctx: None)  # noqa: B010 (not in every version of typer)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what the usage line shows after the command's name."""
        arguments = [each for each in self.params if each.param_type_name == "argument"]
        return ["[OPTIONS]", *(each.metavar or (each.name or "").upper() for each in arguments)]

    def make_parser(self, ctx: Any) -> Any:
        """Make the parser of the command line, which warns of options that are given twice and take one value."""
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_and_warn(args: list[str]) -> Any:
            values, rest, order = parse(args=args)
            for option, count in Counter(each for each in order if _takes_one_value(each)).items():
                if count > 1:
                    advice = "; separate several by commas" if (option.metavar or "").endswith(",...") else ""
                    text = "%s is given more than once, and only the last counts: %s%s"
                    logger.warning(text, option.opts[-1], values[option.name], advice)
            return values, rest, order

        parser.parse_args = parse_and_warn
        return parser

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        self._describe_options()
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return completions, which some shells show with the help of each."""
        self._describe_options()
        return super().shell_complete(ctx, incomplete)

    def _describe_options(self) -> None:
        """Give a text to each option that has none of its own; not before it is shown, so that commands start fast."""
        assert self.callback is not None
        settings = settings_by_name(inspect.unwrap(self.callback))
        for option in self.params:
            setting = settings.get(option.name or "")
            if setting is None or getattr(option, "help", None) is not None:
                continue
            setattr(option, "help", help_of(setting))  # noqa: B010 (an option, not an argument)


def _takes_one_value(parameter: Any) -> bool:
    return parameter.param_type_name == "option" and not parameter.multiple and not parameter.is_flag


def field_of(key: str) -> FieldInfo:
    """Return the field of a pipeline that has a dotted key.

    Examples
    --------
    >>> field_of("extract.batch_size").default
    64
    """
    from featbench.pipelines.config.pipeline import Pipeline
    from featbench.store.config import Config

    section: type[Config] = Pipeline
    *sections, last = key.split(".")
    for name in sections:
        annotation = section.model_fields[name].annotation
        assert isinstance(annotation, type)
        section = annotation
    return section.model_fields[last]


def help_of(setting: Setting) -> str:
    """Return the text of a setting's field, with its choices and its default.

    Examples
    --------
    >>> help_of(Setting("data.seed"))
    'Seed of the draw.  [default: 0]'
    """
    field = field_of(setting.key)
    text = " ".join((field.description or "").split())
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    default = setting.default or _default_of(setting.key, field.default)
    facts = [", ".join(choices)] * bool(choices) + [f"default: {default}"] * bool(default)
    return f"{text}  [{'; '.join(facts)}]" if facts else text


def _default_of(key: str, default: object) -> str:
    if default is True:  # as the flag that would say it
        return key.rpartition(".")[2].replace("_", "-")
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "" if default is None or default is False else str(default)
