"""Nearest neighbours as one picture: a row per item asked about, a group of columns per modality.

In: Answers (recsys/report/neighbour_answers.py). Out: a picture, light in any surroundings. Called by
launch/neighbours.py.
"""

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from recsys.errors import UserError
from recsys.report.items import Item
from recsys.report.neighbour_answers import (
    MARKS,
    MODALITIES,
    WORDING,
    Answer,
    Neighbour,
    summarise,
    why_empty,
)

_BACK, _CARD, _LINE, _INK, _SOFT = "#f4f6f9", "#ffffff", "#dde3ea", "#1c2430", "#5b6778"
_MARGIN, _PAD, _GAP, _ASKED = 24, 16, 24, 116
_TILE_GAP = 7

# Families with Chinese and Japanese, tried in this order where the machine has them.
_WIDE_FAMILIES: tuple[str, ...] = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "Source Han Sans",
)
_WIDE_FAMILIES += (
    "Hiragino Sans",
    "Yu Gothic",
    "Microsoft YaHei",
    "WenQuanYi Zen Hei",
    "IPAGothic",
)


def draw_sheet(
    *, title: str, notes: list[str], answers: list[Answer], marks: list[str], width: int
) -> Image.Image:
    """Return the sheet, `width` pixels wide, as high as it needs to be.

    Args:
        notes: sentences below the title.
        marks: which are shown (recsys.report.neighbour_answers.known_marks).

    Raises:
        UserError: too narrow for so many neighbours.
    """
    pen = _Pen(width, answers, marks)
    height = pen.header(title, notes)
    for answer in answers:
        height = pen.row(answer, height)
    return pen.finished(height + _MARGIN - 14)


def tile_pixels(width: int, num_groups: int, num_columns: int) -> int:
    """Return the side of a neighbour's picture on a sheet `width` pixels wide.

    Raises:
        UserError: it would be too small to see.
    """
    group = _group_pixels(width, num_groups)
    side = (group + _TILE_GAP) // num_columns - _TILE_GAP
    if side < 32:
        raise UserError(
            f"sheet_width={width}: leaves {max(side, 0)} pixels for each of {num_groups} x "
            f"{num_columns} pictures, expected 32 or more; give a larger sheet_width or a smaller k"
        )
    return side


def _group_pixels(width: int, num_groups: int) -> int:
    return (width - 2 * (_MARGIN + _PAD) - _ASKED) // num_groups - _GAP


class _Pen:
    """Draws from top to bottom on a sheet that grows."""

    def __init__(self, width: int, answers: list[Answer], marks: list[str]):
        self.answers = answers
        self.names = list(answers[0].groups)
        self.marks = marks
        self.width = width
        columns = [len(group) for a in answers for group in a.groups.values() if group]
        self.num_columns = max(columns, default=1)
        self.group_width = _group_pixels(width, len(self.names))
        self.tile = tile_pixels(width, len(self.names), self.num_columns)
        self.small = 11 if self.tile < 84 else 12
        self.image = Image.new("RGB", (width, 2000), _BACK)
        self.draw = ImageDraw.Draw(self.image)

    def finished(self, height: int) -> Image.Image:
        return self.image.crop((0, 0, self.width, height))

    def left_of(self, group: int) -> int:
        start = _MARGIN + _PAD + _ASKED
        return start + _GAP + group * (self.group_width + _GAP)

    def text(
        self, at: tuple[float, float], text: str, size: int, colour: str = _INK, bold: bool = False
    ) -> float:
        """Write one line; return where it ends."""
        font = _font(text, size, bold)
        self.draw.text(at, text, fill=colour, font=font)
        return at[0] + font.getlength(text)

    def header(self, title: str, notes: list[str]) -> int:
        """Title, notes, legend, names of the groups; return the y below."""
        room = self.width - 2 * _MARGIN
        self.text((_MARGIN, 22), _fitted(_shown(title), 24, room, bold=True), 24, bold=True)
        y = 58
        for line in _wrapped(" ".join(notes), 14, room, 4, bold=False):
            self.text((_MARGIN, y), line, 14, _SOFT)
            y += 21
        if self.marks:
            y += 3
            x: float = _MARGIN
            for mark in self.marks:
                self.draw.rounded_rectangle((x, y + 5, x + 20, y + 11), 3, fill=MARKS[mark])
                x = self.text((x + 27, y), WORDING[mark], 14, _SOFT) + 22
            y += 23
        y += 14
        summary = summarise(self.answers)
        for index, name in enumerate(self.names):
            end = self.text((self.left_of(index), y), name, 17, bold=True)
            self.text((end + 9, y + 3), MODALITIES[name], 13, _SOFT)
            shares = [
                f"{WORDING[mark]} {summary[name][mark]:.0%}"
                for mark in self.marks
                if summary[name][mark] is not None
            ]
            shown = _fitted("   ".join(shares), 12, self.group_width)
            self.text((self.left_of(index), y + 24), shown, 12, _SOFT)
        return y + (48 if self.marks else 30)

    def row(self, answer: Answer, top: int) -> int:
        """One card; return the y below it."""
        label = self.small + 3
        height = max(
            _ASKED + 8 + self.asked_lines(answer.item, None),
            self.tile + 12 + 3 * label,
        )
        bottom = top + 2 * _PAD - 6 + height
        self.grow(bottom + 100)
        box = (_MARGIN, top, self.width - _MARGIN - 1, bottom)
        self.draw.rounded_rectangle(box, 10, fill=_CARD, outline=_LINE)
        x, y = _MARGIN + _PAD, top + _PAD
        self.picture(answer.item, x, y, _ASKED)
        self.asked_lines(answer.item, (x, y + _ASKED + 8))
        for index, group in enumerate(answer.groups.values()):
            left = self.left_of(index)
            line = left - _GAP // 2
            self.draw.line((line, top + 12, line, bottom - 12), fill=_LINE)
            if not group:
                for number, words in enumerate(_wrapped(why_empty(group), 13, self.group_width, 3)):
                    self.text((left, y + 18 * number), words, 13, _SOFT)
            for column, near in enumerate(group or ()):
                self.entry(answer.item, near, left + column * (self.tile + _TILE_GAP), y)
        return bottom + 14

    def grow(self, height: int) -> None:
        if height > self.image.height:
            larger = Image.new("RGB", (self.width, 2 * height), _BACK)
            larger.paste(self.image)
            self.image, self.draw = larger, ImageDraw.Draw(larger)

    def asked_lines(self, item: Item, at: tuple[int, int] | None) -> int:
        """Write what is known of the item asked about; at None: return the height only."""
        lines = [
            (words, 14, _INK, True) for words in _wrapped(_shown(item.name, item), 14, _ASKED, 3)
        ]
        if item.artist:
            lines.append((_fitted(_shown(item.artist), 13, _ASKED), 13, _SOFT, False))
        if not item.artist and item.tags:
            tags = _shown(", ".join(item.tags))
            lines += [(words, 12, _SOFT, False) for words in _wrapped(tags, 12, _ASKED, 2)]
        y = 0
        for words, size, colour, bold in lines:
            if at:
                self.text((at[0], at[1] + y), words, size, colour, bold)
            y += size + 4
        return y

    def entry(self, asked: Item, near: Neighbour, x: int, y: int) -> None:
        """A neighbour: picture, similarity, marks, name."""
        side = self.tile
        self.picture(near.item, x, y, side)
        number = f"{near.similarity:.2f}"
        font = _font(number, self.small, True)
        wide = font.getlength(number) + 8
        plate = Image.new("RGBA", (int(wide), self.small + 5), "#1c2430c8")
        where = (x + side - plate.width, y + side - plate.height)
        self.image.paste(plate, where, plate)
        self.draw.text((where[0] + 4, where[1] + 1), number, fill="#fff", font=font)
        self.marks_of(asked, near, x, y + side + 4)
        top = y + side + 12
        name = _shown(near.item.name, near.item)
        lines = _wrapped(name, self.small, side, 2 if near.item.artist else 3, bold=False)
        for number_of_line, words in enumerate(lines):
            self.text((x, top + number_of_line * (self.small + 3)), words, self.small)
        if near.item.artist:
            below = top + len(lines) * (self.small + 3)
            self.text(
                (x, below), _fitted(_shown(near.item.artist), self.small, side), self.small, _SOFT
            )

    def marks_of(self, asked: Item, near: Neighbour, x: int, y: int) -> None:
        """A bar in equal parts, one per mark: filled where it is shared, tags by their share."""
        if not self.marks:
            return
        part = (self.tile - 3 * (len(self.marks) - 1)) / len(self.marks)
        shares = {
            "artist": float(near.same_artist),
            "content": float(near.same_content),
            "tags": near.shared_tags / max(len(set(asked.tags)), 1),
        }
        for index, mark in enumerate(self.marks):
            left = x + index * (part + 3)
            self.draw.rectangle((left, y, left + part - 1, y + 4), fill="#e8ecf1")
            if shares[mark] > 0:
                self.draw.rectangle(
                    (left, y, left + part * shares[mark] - 1, y + 4), fill=MARKS[mark]
                )

    def picture(self, item: Item, x: int, y: int, side: int) -> None:
        """The item's picture, or a grey square that says there is none."""
        if item.picture is None:
            self.draw.rectangle((x, y, x + side - 1, y + side - 1), fill="#e8ecf1")
            words = "no picture" if side > 66 else "none"
            font = _font(words, self.small, False)
            middle = (x + side / 2, y + side / 2)
            self.draw.text(middle, words, fill=_SOFT, font=font, anchor="mm")
        else:
            self.image.paste(item.picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))


def _shown(text: str, item: Item | None = None) -> str:
    """Return the text on one line; the item's id where no font here has its letters."""
    text = " ".join(text.split())
    if item is not None and _font_file(text, False) is None:
        return item.item_id
    return text


def _wrapped(text: str, size: int, width: float, most: int, bold: bool = True) -> list[str]:
    """Return the text as at most `most` lines that fit; the last is cut where it has to be."""
    font = _font(text, size, bold)
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < most - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        lines.append(_fitted(" ".join(words[:count]), size, width, bold))
        words = words[count:]
    return [*lines, _fitted(" ".join(words), size, width, bold)] if words else lines


def _fitted(text: str, size: int, width: float, bold: bool = False) -> str:
    """Return the text, cut with three dots where it is wider than `width` pixels."""
    font = _font(text, size, bold)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text.rstrip(" ,/") + "...") > width:
        text = text[:-1]
    return text.rstrip(" ,/") + "..."


def _font(text: str, size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """Return a font that has the letters of `text`, else the usual one."""
    return _opened_font(_font_file(text, bold) or _usual_font(bold), size)


@cache
def _opened_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def _usual_font(bold: bool) -> Path:
    """DejaVu Sans comes with matplotlib: the same letters on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name


def _font_file(text: str, bold: bool) -> Path | None:
    """Return the first font that has every letter of `text`; None where there is none."""
    letters = {ord(letter) for letter in text if not letter.isspace()}
    for path in (_usual_font(bold), *_wide_fonts()):
        if letters <= _letters_of(path):
            return path
    return None


@cache
def _wide_fonts() -> list[Path]:
    installed = {font.name: Path(font.fname) for font in fontManager.ttflist}
    return [installed[name] for name in _WIDE_FAMILIES if name in installed]


@cache
def _letters_of(path: Path) -> set[int]:
    return set(FT2Font(str(path)).get_charmap())
