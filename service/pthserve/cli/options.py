"""Options: the settings as options of a command, made from Settings itself; there is no second list."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import rich_click as click
from pydantic import ValidationError

from pthserve.cli import demo
from pthserve.settings import VARIABLE, Settings

Function = Callable[..., Any]

MODEL = click.argument("model", envvar="PTHSERVE_MODEL", default=Settings.model_fields["model"].default)
"""What to serve: a weights file, a folder, or `demo`."""


def takes_settings(*names: str, **own_defaults: Any) -> Callable[[Function], Function]:
    """A decorator that gives a command settings as options, and calls it with `settings` in their place.

    names: of the settings; without any, all of them. `log_level` is always among them. own_defaults: where
    the command's default differs from the service's.
    """
    chosen = [name for name in names or Settings.in_order() if name not in ("model", "log_level")]

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def with_settings(**parameters: Any) -> Any:
            given = {name: parameters.pop(name) for name in Settings.model_fields if name in parameters}
            settings = _settings(given)
            if "model" in given:
                settings = demo.resolved(settings)
            return command(settings=settings, **parameters)

        decorated: Function = with_settings
        for name in reversed([*chosen, "log_level"]):
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
        envvar=_variable(name),
        default=default,
        show_default=default is not None,
        help=field.description,
    )


def _type(annotation: Any) -> Any:
    """click's type of a setting's annotation; bounds are left to Settings."""
    options = [option for option in get_args(annotation) if option is not NoneType]
    if get_origin(annotation) is Literal:
        return click.Choice(options)
    kind = options[0] if options else annotation
    return click.Path(path_type=Path) if kind is Path else kind


def _settings(given: dict[str, Any]) -> Settings:
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        where = "MODEL" if name == "model" else _flag(name)
        raise click.UsageError(
            f"{where} ({_variable(name)}): {first['msg'].removeprefix('Value error, ')}"
        ) from None
    logging.getLogger("pthserve").setLevel(settings.log_level.upper())
    return settings


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return VARIABLE.format(name.upper())
