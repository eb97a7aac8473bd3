"""Exported objects: which outputs of an exported graph are boxes or classes of pixels.

The card states it. Without that, the only certain evidence is what Ultralytics writes into the files of its
YOLO models, together with the shape of the output. For any other graph that looks like a detector, the error
contains the lines of a card that settle it.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pthserve.certainty import Inferred, Origin
from pthserve.engines.object_graphs import BoxOutputs
from pthserve.errors import ArchitectureError
from pthserve.files.stated_task import GraphOutputs, Layout, StatedTask
from pthserve.images.spec import Spec
from pthserve.tasks.base import BACKGROUND, Task
from pthserve.tasks.detection import THRESHOLD, DetectionTask
from pthserve.tasks.objects import Table
from pthserve.tasks.segmentation import SegmentationTask
from pthserve.tasks.suppression import CANDIDATES
from pthserve.text import quoted
from pthserve.zoos.exported_ends import Form
from pthserve.zoos.layout import some

SIDE = 640
"""Width and height in pixels of the images of a graph with boxes, if neither graph nor card states a size."""
GREY = 114
"""The grey level around an image in the letterbox of all YOLO models of Ultralytics."""
OVERLAPS: Mapping[Layout, float] = {"yolov5": 0.45, "yolov8": 0.7}
"""The `iou` with which YOLOv5's and Ultralytics' `predict` suppress boxes."""
YOLO_THRESHOLD = 0.25
"""The `conf` of both: the minimum score of an object."""

_LAYOUTS: Mapping[Layout, str] = {
    "yolov5": "(n, boxes, 5 + classes)",
    "yolov8": "(n, 4 + classes, boxes)",
    "rows": "(n, objects, 6)",
}
_LINES = (
    "`task: detection, outputs: {{layout: yolov8{tensor}}}` for an output (n, 4 + classes, boxes), or "
    "`layout: yolov5` for (n, boxes, 5 + classes), or `layout: rows` for (n, objects, 6)"
)


@dataclass(frozen=True, slots=True)
class Objects:
    """The boxes or classes of pixels that an exported graph computes, and the task that reads them.

    Attributes:
        outputs: Where the boxes are; or the number of the output with the scores of pixels.
        classes: Number of classes, including the background if there is one.
        labels: One per class, if the file names them.
        letterbox: Whether such models are trained with a letterbox.
        inferred: What was inferred beyond what the card states.
    """

    outputs: BoxOutputs | int
    task: Task
    classes: int
    labels: tuple[str, ...] | None = None
    letterbox: bool = False
    inferred: tuple[Inferred, ...] = ()

    @property
    def most(self) -> int:
        """Number of objects in the row of an image."""
        return self.task.table.most if isinstance(self.task, DetectionTask) else 0


@dataclass(frozen=True, slots=True)
class Ends:
    """What is known about a graph.

    Attributes:
        names: Names of its outputs.
        forms: Shapes of its outputs.
        metadata: What the exporter wrote into the file.
        size: (height, width) of the model's image in pixels.
        file: Its name, for messages.
    """

    names: Sequence[str]
    forms: Sequence[Form]
    metadata: Mapping[str, str]
    size: tuple[int, int]
    file: str

    def place(self, name: str) -> int:
        """Return the number of the output called `name`."""
        if name not in self.names:
            raise ArchitectureError(
                f"{self.file}: has no output {quoted(repr(name))}; its outputs are {some(self.names, 10)}"
            )
        return self.names.index(name)

    def shown(self, place: int) -> str:
        """Return the name and the shape of an output."""
        sides = ", ".join("n" if side is None else str(side) for side in self.forms[place])
        return f"{self.names[place]} ({sides})"


def has_objects(
    stated: StatedTask, output: object, forms: Sequence[Form], metadata: Mapping[str, str]
) -> bool:
    """Return whether the outputs are, or look like, those of a detector or a segmenter.

    Args:
        output: The output that the card names for a classifier, if it names one.
        forms: The shapes of the outputs.
    """
    name = stated.name or (stated.implied if stated.graph else None)
    if name is not None or output is not None:
        return name in ("detection", "segmentation")
    if _yolo_task(metadata):
        return _yolo_task(metadata) != "classify"
    if len(forms) == 1:
        return sum(side != 1 for side in forms[0][1:]) > 1
    boxes = [form for form in forms if len(form) in (2, 3) and form[-1] == 4]
    return any(len(form) == 3 or any(len(other) == 1 for other in forms) for form in boxes)


def read(stated: StatedTask, labels: Sequence[str] | None, ends: Ends) -> Objects:
    """Return what the outputs are.

    Args:
        labels: Those of the card, if it states any.

    Raises:
        ArchitectureError: Nothing settles it; or what the card states does not fit the graph.
    """
    name = stated.name or (stated.implied if stated.graph else None)
    graph = stated.graph or GraphOutputs()
    if name == "segmentation":
        return _pixels(graph, ends)
    if graph.layout is not None:
        return _single(graph.layout, graph, labels, ends)
    if graph.boxes is not None:
        return _boxes(graph, labels, ends)
    return _recognised(graph, labels, ends)


def _yolo_task(metadata: Mapping[str, str]) -> str:
    """The task that Ultralytics wrote into the file; YOLOv5's files have a stride and no task."""
    if "names" not in metadata or "stride" not in metadata:
        return ""
    return metadata.get("task", "detect")


def _names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the classes in a file of Ultralytics: a dictionary or a list as Python prints it."""
    try:
        found = ast.literal_eval(metadata.get("names", "")[:_MOST_TEXT])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    if isinstance(found, dict):
        found = [found.get(number) for number in range(len(found))]
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        return ()
    return tuple(found)


_MOST_TEXT = 2**20


def _recognised(graph: GraphOutputs, labels: Sequence[str] | None, ends: Ends) -> Objects:
    """The boxes of a graph whose card does not say where they are."""
    task, names = _yolo_task(ends.metadata), _names(ends.metadata)
    if task not in ("", "detect"):
        raise ArchitectureError(
            f"{ends.file}: is a YOLO model for the task {quoted(task)}, which is not supported; only detect "
            "and classify are"
        )
    if task and len(ends.forms) == 1 and len(ends.forms[0]) == 3:
        _, rows, columns = ends.forms[0]
        found: Layout | None = None
        if "task" in ends.metadata:
            found = "yolov8" if rows == 4 + len(names) else "rows" if columns == 6 else None
        elif columns == 5 + len(names) and rows in _anchors(ends.size):
            found = "yolov5"
        if found is not None and names:
            value = f"the layout {found}: the file has the names of {len(names)} classes, and the shape fits"
            inferred = Inferred("outputs", value, Origin.FILE, f"outputs: {{layout: {found}}}")
            return replace(_single(found, graph, labels, ends), inferred=(inferred,))
    raise ArchitectureError(f"{ends.file}: {_question(ends)}")


def _anchors(size: tuple[int, int]) -> set[int]:
    """The numbers of boxes of a YOLOv5 model: three for each cell of its grids, of 8 to 32 or 64 pixels."""
    cells = [(size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32, 64)]
    return {3 * sum(cells[:3]), 3 * sum(cells)}


def _question(ends: Ends) -> str:
    """What the card has to say, for a graph that may have boxes or classes of pixels."""
    shown = "; ".join(ends.shown(place) for place in range(len(ends.names)))
    if len(ends.forms) == 1 and len(ends.forms[0]) == 4:
        return (
            f"its output is {shown}, not a number for each class; if that is a score for each class and "
            "pixel, state `task: segmentation` in model.yaml"
        )
    if len(ends.forms) == 1 or not (
        boxes := [one for one, form in enumerate(ends.forms) if form[-1:] == (4,)]
    ):
        tensor = "" if len(ends.forms) == 1 else f", tensor: {ends.names[0]}"
        return f"its outputs are {shown}; state in model.yaml what they hold: {_LINES.format(tensor=tensor)}"
    others = [name for one, name in enumerate(ends.names) if one != boxes[0]]
    scores = next((name for name in others if "score" in name), others[0])
    labels = next((name for name in others if name != scores), None)
    named = f"boxes: {ends.names[boxes[0]]}, scores: {scores}" + (f", labels: {labels}" if labels else "")
    return (
        f"its outputs are {shown}, which look like boxes; state in model.yaml which is which, such as "
        f"`task: detection, outputs: {{{named}, format: xyxy}}` (or xywh or cxcywh; `units: shares` if they "
        "are 0 to 1)"
    )


def _single(layout: Layout, graph: GraphOutputs, labels: Sequence[str] | None, ends: Ends) -> Objects:
    """The boxes of a single output, which also has the scores and classes."""
    place, names = _only(graph, ends, 3), _names(ends.metadata)
    form = ends.forms[place]
    rows, columns = form[1:] if len(form) == 3 else (None, None)
    count, width = (columns, rows) if layout == "yolov8" else (rows, columns)
    classes = (width or 0) - {"yolov5": 5, "yolov8": 4, "rows": 5}[layout]
    if classes < 1 or (layout == "rows" and width != 6) or (count is not None and classes > count):
        raise ArchitectureError(
            f"{ends.file}: its output is {ends.shown(place)}, but `layout: {layout}` is {_LAYOUTS[layout]}"
        )
    if layout == "rows":
        classes = _counted(graph, labels or names, "the last column", ends)
    outputs = BoxOutputs(
        (place,),
        layout,
        graph.format if layout == "rows" else "cxcywh",
        graph.units,
        graph.activation == "sigmoid",
        ends.size,
    )
    overlap = OVERLAPS.get(layout, 1.0) if graph.overlap is None else graph.overlap
    task = DetectionTask(_table(count, overlap, graph), YOLO_THRESHOLD)
    return Objects(outputs, task, classes, _known(graph, names, classes), letterbox=True)


def _counted(graph: GraphOutputs, labels: Sequence[str], where: str, ends: Ends) -> int:
    """The number of classes of a graph that gives class indices."""
    if not labels:
        raise ArchitectureError(
            f"{ends.file}: nothing says how many classes there are in {where}; state `labels` in model.yaml, "
            "with `first_label: 1` in `outputs` if class index 0 is the background"
        )
    return len(labels) + graph.first_label


def _known(graph: GraphOutputs, names: tuple[str, ...], classes: int) -> tuple[str, ...] | None:
    """The labels by the names in the file, if they are those of all classes."""
    known = (*(BACKGROUND,) * graph.first_label, *names)
    return known if names and len(known) == classes else None


def _boxes(graph: GraphOutputs, labels: Sequence[str] | None, ends: Ends) -> Objects:
    """The boxes of outputs that the card names one by one."""
    named = [name for name in (graph.boxes, graph.scores, graph.labels) if name is not None]
    places = tuple(ends.place(name) for name in named)
    boxes, scores, *indices = (ends.forms[place] for place in places)
    shown = ", ".join(ends.shown(place) for place in places)
    wanted = len(boxes) - (graph.labels is not None)
    if (
        len(boxes) not in (2, 3)
        or boxes[-1] != 4
        or len(scores) != wanted
        or any(len(one) != wanted for one in indices)
    ):
        raise ArchitectureError(
            f"{ends.file}: the outputs are {shown}; boxes must be (n, objects, 4), or (objects, 4) for one "
            "image; scores and labels (n, objects); or, without labels, scores (n, objects, classes)"
        )
    names = _names(ends.metadata)
    if indices:
        classes = _counted(graph, labels or names, f"`{graph.labels}`", ends)
    else:
        classes = scores[-1] or 0
        if graph.overlap is None:
            raise ArchitectureError(
                f"{ends.file}: `{graph.scores}` has a score for each class, and nothing says whether boxes "
                "overlap; state `overlap` in `outputs`: 0.5 keeps one of the boxes of a class that overlap "
                "by more than half; 1 keeps all, as for DETR"
            )
    overlap = 1.0 if graph.overlap is None else graph.overlap
    outputs = BoxOutputs(places, None, graph.format, graph.units, graph.activation == "sigmoid", ends.size)
    task = DetectionTask(_table(boxes[-2], overlap, graph), THRESHOLD)
    return Objects(outputs, task, classes, _known(graph, names, classes))


def _table(count: int | None, overlap: float, graph: GraphOutputs) -> Table:
    """The table of an image. count: number of boxes in the graph; None if it varies."""
    return Table(most=CANDIDATES if count is None else count, overlap=overlap, objects=graph.objects)


def _pixels(graph: GraphOutputs, ends: Ends) -> Objects:
    """The scores of pixels."""
    if graph.boxes is not None or graph.layout is not None:
        raise ArchitectureError(f"{ends.file}: `outputs` names boxes, but the task is segmentation")
    place = _only(graph, ends, 4)
    form = ends.forms[place]
    classes = form[1] if len(form) == 4 else None
    if classes is None or form[2] is None or form[3] is None or 1 in form[2:]:
        raise ArchitectureError(
            f"{ends.file}: its output is {ends.shown(place)}; the task segmentation needs a score for each "
            "class and pixel: (n, classes, height, width), for images of one size, without an argmax"
        )
    names = _names(ends.metadata)
    inferred: tuple[Inferred, ...] = ()
    if classes == 1:
        value = "one, whose sigmoid is the probability of class 1; class 0 is the background"
        inferred, classes = (Inferred("classes", value, Origin.ASSUMED),), 2
    return Objects(
        place,
        SegmentationTask(classes, (form[2], form[3])),
        classes,
        names if len(names) == classes else None,
        inferred=inferred,
    )


def _only(graph: GraphOutputs, ends: Ends, rank: int) -> int:
    """The number of the one output that has everything."""
    if graph.tensor is not None:
        return ends.place(graph.tensor)
    possible = [one for one, form in enumerate(ends.forms) if len(form) == rank]
    if len(ends.forms) == 1:
        return 0
    if len(possible) != 1:
        raise ArchitectureError(
            f"{ends.file}: has the outputs {some(ends.names, 10)}; state which of them to serve in "
            f"model.yaml: `outputs: {{tensor: {ends.names[possible[0] if possible else 0]}}}`"
        )
    return possible[0]


def preprocessing(objects: Objects, usual: Spec, inferred: Inferred) -> tuple[Spec, Inferred]:
    """Return the preprocessing of whole images, if the card states none, and what that rests on.

    Args:
        usual: The preprocessing for a classifier.
        inferred: What that rests on.
    """
    spec = replace(usual, resize=usual.crop)
    if not objects.letterbox:
        rest = inferred.value.partition(" (")[2]
        value, origin = f"{spec.words()} ({rest}", inferred.origin
    else:
        spec = replace(spec, pad=GREY, antialias=False, exif=True)
        if set(spec.mean) != {0.0}:  # nothing in the graph says so
            spec = replace(spec, mean=(0.0,) * spec.channels, std=(1.0,) * spec.channels)
        value, origin = f"{spec.words()}, the letterbox with which YOLO models are trained", Origin.DEFAULT
    return spec, Inferred("preprocessing", value, origin, f"preprocessing: {spec.to_card()}")
