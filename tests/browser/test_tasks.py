"""The page shows the answers of every task."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from pthserve.files.stated_task import NamedOutput
from pthserve.loading.model import Model
from pthserve.tasks.embedding import EmbeddingTask
from pthserve.tasks.multilabel import MultiLabelTask
from pthserve.tasks.regression import RegressionTask

from ..serving.squares import png, squares
from .conftest import Open, Serve

OUTPUTS = (NamedOutput("width", "mm"), NamedOutput("height"), NamedOutput("depth", "mm"))
IMAGE = png((51, 102, 255))
FILE: dict[str, Any] = {"name": "blue.png", "mimeType": "image/png", "buffer": IMAGE}


def vector(answer: Any) -> tuple[str, list[str]]:
    length = float(np.linalg.norm(answer.vector))
    return f"3 numbers length {length:.6g}", [f"{i}{value:.6g}" for i, value in enumerate(answer.vector)]


def values(answer: Any) -> tuple[str, list[str]]:
    rows = RegressionTask.rows(answer.to_dict(3))
    return f"{rows[0].text} width", [row.name + row.text for row in rows]


def labels(answer: Any) -> tuple[str, list[str]]:
    rows = MultiLabelTask.rows(answer.to_dict(3))
    title = ", ".join(answer.names) or "None of the labels"
    return f"{title} from {100 * answer.threshold:.1f} % on", [
        f"{row.name}{row.text.replace('*', '✓').rstrip()}" for row in rows
    ]


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (squares(task=MultiLabelTask(0.65)), labels),
        (squares(task=MultiLabelTask(0.9)), labels),
        (squares(task=RegressionTask(OUTPUTS), labels=("width", "height", "depth")), values),
        (squares(task=EmbeddingTask(3), labels=()), vector),
    ],
    ids=["multilabel", "no label", "regression", "embedding"],
)
def test_an_answer_is_shown_as_its_task_has_it(
    visit: Open, serve: Serve, model: Model, shown: Callable[[Any], tuple[str, list[str]]]
) -> None:
    headline, rows = shown(model(IMAGE))
    tab = visit(serve(model).url)
    expect(tab.page.locator("#state")).to_have_text("ready")
    expect(tab.page.locator("#facts")).to_contain_text(model.task.name)
    card = tab.show(FILE)
    tab.answered()
    expect(card.locator("h3")).to_have_text(headline)
    expect(card.locator(".bars li")).to_have_text(rows)
    why = card.get_by_role("button", name="Show why")
    if model.task.explains:
        why.click()
        card.locator(".heat").wait_for()
    else:
        expect(why).to_be_hidden()
    tab.look("answer")
