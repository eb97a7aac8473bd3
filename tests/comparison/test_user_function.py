"""A user's script is run, and what its function returns is taken or refused with what to return instead."""

import textwrap
from pathlib import Path

import numpy as np
import pytest

from pthserve.comparison.user_function import Returned, UserFunction
from pthserve.errors import PthserveError


def written(folder: Path, body: str, name: str = "train.py") -> str:
    (folder / name).write_text(textwrap.dedent(body))
    return f"{folder / name}:prepare"


def returned(folder: Path, expression: str) -> Returned:
    name = written(folder, f"import numpy as np, torch\ndef prepare(path): return {expression}")
    return UserFunction(name)(folder / "cat.jpg")


@pytest.mark.parametrize(
    "expression",
    [
        "np.ones((3, 4, 5))",
        "np.ones((1, 3, 4, 5), np.uint8)",
        "torch.ones(3, 4, 5)",
        "torch.ones(1, 3, 4, 5, dtype=torch.bfloat16, requires_grad=True)",
        "(torch.ones(3, 4, 5),)",
        "np.ones((3, 4, 5)).tolist()",
    ],
)
def test_a_tensor_in_any_form_is_the_same_array(tmp_path: Path, expression: str) -> None:
    found = returned(tmp_path, expression)
    assert found.scores is None
    assert found.tensor is not None
    assert found.tensor.dtype == np.float32
    assert (found.tensor.shape, float(found.tensor.min())) == ((3, 4, 5), 1)


@pytest.mark.parametrize(
    ("expression", "tensor", "scores"),
    [
        ("torch.ones(1, 10)", None, (10,)),
        ("np.float64(0.5)", None, (1,)),
        ("(torch.ones(1, 3, 4, 5), torch.ones(1, 10))", (3, 4, 5), (10,)),
        ("(torch.ones(10), torch.ones(1, 4, 5))", (1, 4, 5), (10,)),
    ],
)
def test_scores_and_both_are_told_by_their_shapes(
    tmp_path: Path, expression: str, tensor: tuple[int, ...] | None, scores: tuple[int, ...] | None
) -> None:
    found = returned(tmp_path, expression)
    assert (found.tensor if found.tensor is None else found.tensor.shape) == tensor
    assert (found.scores if found.scores is None else found.scores.shape) == scores


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("None", "returns nothing; return the tensor"),
        ("()", "returns nothing"),
        ("'cat'", "returns a str"),
        ("{'logits': torch.ones(3)}", "returns a dict"),
        ("np.ones((4, 5, 3))", r"of shape \(4, 5, 3\), with the channels last \(`.permute\(2, 0, 1\)`"),
        ("np.ones((2, 3, 4, 5))", r"of shape \(2, 3, 4, 5\)"),
        ("(np.ones(3), np.ones(3))", r"arrays of shape \(3,\) and \(3,\)"),
        ("np.ones(0)", r"of shape \(0,\)"),
        ("np.full(3, np.nan)", "NaN or infinity"),
        ("1 / 0", "failed for .*cat.jpg in line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, expression: str, words: str) -> None:
    with pytest.raises(PthserveError, match=f"train.py:prepare .*{words}"):
        returned(tmp_path, expression)


def test_the_script_imports_what_lies_beside_it_and_gets_the_path_as_text(tmp_path: Path) -> None:
    (tmp_path / "beside_the_script.py").write_text("SIZE = 7")
    name = written(
        tmp_path,
        """
        from dataclasses import dataclass
        import numpy as np
        from beside_the_script import SIZE

        @dataclass
        class Config:
            size: "int" = SIZE

        def prepare(path):
            assert type(path) is str and path.endswith("cat.jpg")
            return np.zeros((3, Config().size, SIZE))

        if __name__ == "__main__":
            raise SystemExit("trains")
        """,
    )
    assert UserFunction(name)(tmp_path / "cat.jpg").tensor.shape == (3, 7, 7)


def test_what_the_script_prints_is_no_output_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = written(
        tmp_path,
        """
        import numpy as np
        print("loading")
        def prepare(path):
            print("preparing")
            return np.zeros(3)
        """,
    )
    UserFunction(name)(tmp_path / "cat.jpg")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "loading\npreparing\n")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import no_such_module", "failed in line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1\ndef prepare(path)", "failed in line 2: SyntaxError"),
        ("raise SystemExit(3)", "failed in line 1: SystemExit: 3"),
        ("prepare = 3", "has no function prepare"),
    ],
)
def test_a_script_that_cannot_be_run_is_said_with_its_line(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(PthserveError, match=words):
        UserFunction(written(tmp_path, body))


@pytest.mark.parametrize("name", ["train.py", "prepare", "train.txt:prepare", "train.py:", "train.py:a b"])
def test_a_name_of_another_form_shows_the_form(name: str) -> None:
    with pytest.raises(PthserveError, match=r"write the script and the function in it, such as train\.py:"):
        UserFunction(name)


def test_a_script_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(PthserveError, match="this script does not exist"):
        UserFunction(f"{tmp_path / 'gone.py'}:prepare")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("random.normal(size=(3, 4, 4))", "augments images at random"),
        ("random.normal(size=10)", r"call `.eval\(\)`"),
        ("(np.ones((3, 4, 4)), random.normal(size=10))", r"call `.eval\(\)`"),
        ("np.ones((3, 4, next(count)))", "augments images at random"),
    ],
)
def test_a_function_that_is_random_is_refused(tmp_path: Path, value: str, words: str) -> None:
    name = written(
        tmp_path,
        f"""
        import numpy as np
        from itertools import count as counting
        random, count = np.random.default_rng(0), counting(2)
        def prepare(path):
            return {value}
        """,
    )
    function = UserFunction(name)
    with pytest.raises(PthserveError, match=words):
        function.check_repeatable(tmp_path / "cat.jpg", function(tmp_path / "cat.jpg"))


def test_a_function_that_is_not_random_is_taken(tmp_path: Path) -> None:
    function = UserFunction(
        written(
            tmp_path,
            "import numpy as np\nprepare = lambda path: (np.ones((3, 4, 4)), np.ones(10))",
        )
    )
    function.check_repeatable(tmp_path / "cat.jpg", function(tmp_path / "cat.jpg"))
