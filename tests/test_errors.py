"""The error tree that the docstring draws is the tree in the code."""

import inspect
import re

from pthserve import errors


def test_the_drawn_tree_is_the_class_tree() -> None:
    drawn = {}
    path: list[str] = []
    tree = (errors.__doc__ or "").split("\n\n")[1]
    for prefix, name in re.findall(r"^([│├└─ ]*)([A-Z]\w+)", tree, re.MULTILINE):
        depth = len(prefix) // 4
        path[depth:] = [name]
        drawn[name] = path[depth - 1] if depth else "Exception"
    coded = {
        name: kind.__base__.__name__
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if kind.__base__ is not None
    }
    assert drawn == coded
