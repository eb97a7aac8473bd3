"""Options: the options of commands, made from the fields of `Settings`."""

import functools
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import rich_click as click
from click import get_current_context
from click.core import ParameterSource
from pydantic import ValidationError

from pthserve.cli import demo
from pthserve.options import ModelOptions
from pthserve.settings import VARIABLE, Settings

Function = Callable[..., Any]

MODEL = click.argument("model", default=Settings.model_fields["model"].default)
"""The model: a weights file, a folder, or `demo`."""


def model_options(*, without: Collection[str]) -> tuple[str, ...]:
    """Return the settings for loading a model, `without` those that a command has no use for."""
    return tuple(
        name for name in Settings.in_order() if name in ModelOptions.model_fields and name not in without
    )


def takes_settings(*names: str, **own_defaults: Any) -> Callable[[Function], Function]:
    """Make a decorator that adds settings to a command as options.

    The command gets the parameter `settings` in place of the options. It sees only its own settings: other
    PTHSERVE_ variables are not read.

    Args:
        names: The settings; all of them if there are none. `log_level` is always added.
        own_defaults: Defaults of the command that differ from those of the service.
    """
    options = [
        *(name for name in names or Settings.in_order() if name not in ("model", "log_level")),
        "log_level",
    ]

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def with_settings(**parameters: Any) -> Any:
            own = [name for name in ("model", *options) if name in parameters]
            values = {name: parameters.pop(name) for name in own}
            source = get_current_context().get_parameter_source
            given = {name: values[name] for name in own if source(name) is ParameterSource.COMMANDLINE}
            settings = _read(given, own, own_defaults)
            if "model" in own:
                settings = demo.resolved(settings)
            return command(settings=settings, **parameters)

        decorated: Function = with_settings
        for name in reversed(options):
            decorated = _option(name, own_defaults)(decorated)
        return decorated

    return decorate


def _option(name: str, own_defaults: dict[str, Any]) -> Callable[[Function], Function]:
    field = Settings.model_fields[name]
    default = own_defaults.get(name, field.default)
    return click.option(
        _flag(name),
        name,
        type=_type(field.annotation),
        is_flag=field.annotation is bool,
        default=default,
        show_default=default is not None,
        help=field.description,
    )


def _type(annotation: Any) -> Any:
    """Return click's type for the annotation of a setting; `Settings` checks the bounds."""
    options = [option for option in get_args(annotation) if option is not NoneType]
    if get_origin(annotation) is Literal:
        return click.Choice(options)
    kind = options[0] if options else annotation
    return click.Path(path_type=Path) if kind is Path else kind


def _read(given: dict[str, Any], names: Collection[str], defaults: dict[str, Any]) -> Settings:
    try:
        settings = Settings.read(given, names=names, **defaults)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        where = "MODEL" if name == "model" else _flag(name)
        raise click.UsageError(
            f"{where} ({VARIABLE.format(name.upper())}): {first['msg'].removeprefix('Value error, ')}"
        ) from None
    logging.getLogger("pthserve").setLevel(settings.log_level.upper())
    return settings


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
