"""A query and its neighbours as one picture, with similarities and classes."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from featbench.pipelines.extraction.pictures import Pictures
from featbench.pipelines.neighbours.finding import Answer
from featbench.store import BenchError, StoreError
from featbench.store.durable import ANOTHER_FILE, write_durably
from featbench.store.names import visible

logger = logging.getLogger(__name__)

SIDE, GAP, FRAME = 192, 14, 5
"""Pixels: the side of a picture's cell, between cells, and of the frame."""

COLUMNS = 5
"""Neighbours in a row."""

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Formats of pictures, by the ending of a file's name."""

MOST = 200
"""Neighbours in a picture."""

RIGHT, WRONG, NEITHER = "#1a7f37", "#c9372c", "#6e7781"
INK, PAPER, EMPTY = "#1f2328", "#ffffff", "#eaeef2"

FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf")
"""Tried in this order for the texts; Pillow's own has only Latin letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    image: Image.Image | None
    color: str
    lines: tuple[str, ...]


def save_picture(answer: Answer, pictures: Pictures, path: Path, *, split: str = "val") -> None:
    """Draw a query and its neighbours, and write the picture.

    Parameters
    ----------
    answer : Answer
        What to draw; of more than 200 neighbours the first.
    pictures : Pictures
        Images of the feature set. Where one is gone its cell says so, with a warning.
    path : Path
        File to write; its ending says the format.
    split : str
        Of the query.

    Raises
    ------
    StoreError
        If the format is unknown, or the file can't be written.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise StoreError(f"{path}: the name of a picture must end in .png, .jpg or .webp; got {path.suffix or 'none'}")
    content = io.BytesIO()
    draw(answer, pictures, split=split).save(content, kind)
    write_durably(path, content.getvalue(), again=ANOTHER_FILE)


def draw(answer: Answer, pictures: Pictures, *, split: str = "val") -> Image.Image:
    """Draw a query, and its neighbours from left to right and from top to bottom."""
    shown = answer.neighbours[:MOST]
    gone: list[str] = []
    query = _Cell(
        image=_read(lambda: _query_image(answer, pictures, split), gone), color=INK, lines=_query_lines(answer)
    )
    cells = [
        _Cell(
            image=_read(partial(pictures.image, "train", each.row), gone),
            color={True: RIGHT, False: WRONG, None: NEITHER}[each.is_right],
            lines=(
                f"{each.rank}   {each.similarity:.4f}",
                {True: "\u2713 ", False: "\u2717 ", None: ""}[each.is_right] + (each.label or "no class"),
            ),
        )
        for each in shown
    ]
    if gone:
        logger.warning("%d of %d images can't be shown; the first: %s", len(gone), len(cells) + 1, gone[0])
    return _sheet(query, cells, _title(answer))


def _title(answer: Answer) -> str:
    temperature = "" if answer.temperature is None else f", T = {answer.temperature:g}"
    return f"{answer.features}, {answer.layer}: {answer.similarity}, k = {answer.k}{temperature}"


def _query_lines(answer: Answer) -> tuple[str, ...]:
    lines = ["query", f"class: {answer.label}" if answer.label else "class not known"]
    if answer.predicted is not None:
        share = answer.votes[0][1]
        mark = "" if answer.label is None else "\u2713 " if answer.predicted == answer.label else "\u2717 "
        lines.append(f"{mark}vote: {answer.predicted} ({100 * share:.0f}%)")
    return tuple(lines)


def _query_image(answer: Answer, pictures: Pictures, split: str) -> Image.Image:
    from featbench.extract.data.images import read_picture

    if answer.query.file is not None:
        return read_picture(answer.query.file, name=answer.query.path).image
    assert answer.query.row is not None
    return pictures.image(split, answer.query.row)


def _read(read: Callable[[], Image.Image], gone: list[str]) -> Image.Image | None:
    try:
        image = read()
    except BenchError as error:
        gone.append(str(error).splitlines()[0])
        return None
    image.thumbnail((SIDE, SIDE))
    if max(image.size) < SIDE:  # small images keep their pixels
        scale = SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC)
    return image


def _sheet(query: _Cell, cells: Sequence[_Cell], title: str) -> Image.Image:
    columns = min(COLUMNS, len(cells))
    cell_w, cell_h = SIDE + 2 * FRAME, SIDE + 2 * FRAME + 3 * 22
    lines = -(-len(cells) // columns)
    head = 34
    width = GAP + (columns + 1) * (cell_w + GAP) + GAP
    sheet = Image.new("RGB", (width, head + lines * (cell_h + GAP) + GAP), PAPER)
    canvas = ImageDraw.Draw(sheet)
    canvas.text((GAP, 8), _fitted(canvas, title, width - 2 * GAP), fill=INK, font=_font())
    _paste(sheet, query, GAP, head)
    for number, cell in enumerate(cells):
        line, column = divmod(number, columns)
        _paste(sheet, cell, 2 * GAP + (column + 1) * (cell_w + GAP), head + line * (cell_h + GAP))
    return sheet


def _paste(sheet: Image.Image, cell: _Cell, left: int, top: int) -> None:
    canvas = ImageDraw.Draw(sheet)
    side = SIDE + 2 * FRAME
    canvas.rectangle((left, top, left + side - 1, top + side - 1), fill=EMPTY, outline=cell.color, width=FRAME)
    if cell.image is None:
        canvas.text((left + side / 2, top + side / 2), "image not found", fill=INK, font=_font(), anchor="mm")
    else:
        x, y = (FRAME + (SIDE - length) // 2 for length in cell.image.size)
        sheet.paste(cell.image, (left + x, top + y))
    for number, line in enumerate(cell.lines):
        at = (left + 2, top + side + 4 + 20 * number)
        color = cell.color if number == len(cell.lines) - 1 and cell.color != INK else INK
        canvas.text(at, _fitted(canvas, line, side - 4), fill=color, font=_font())


def _fitted(canvas: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """Shorten a text to a width, in pixels."""
    text = visible(text, keep="")
    if canvas.textlength(text, font=_font()) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if canvas.textlength(text[:middle] + "\u2026", font=_font()) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "\u2026"


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, 15)
        except OSError:
            continue
    return ImageFont.load_default(15)
