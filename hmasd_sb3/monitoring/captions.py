"""Draws one video frame: the game's picture above a caption with step, reward and skills. Knows no model, no game."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

# Okabe and Ito's palette: eight colours that people with any common colour blindness can tell apart.
AGENT_SKILL_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (150, 150, 150),
)
# Dark, so that a team skill never looks like an agent's skill of the same number.
TEAM_SKILL_COLOURS: tuple[Colour, ...] = ((61, 43, 86), (24, 78, 74), (110, 37, 46), (38, 57, 110), (92, 74, 20))

_BACKGROUND: Colour = (248, 248, 248)
_HIGHLIGHT: Colour = (255, 214, 92)
_INK: Colour = (30, 30, 30)
_BORDER: Colour = (120, 120, 120)
_ABSENT: Colour = (225, 225, 225)
_MIN_WIDTH = 420  # pixels; narrower pictures are enlarged, since the caption needs the room
_FONT_SIZE = 17
_MARGIN = 12
_CHIP_HEIGHT = 28
_CHIP_GAP = 8


class Skills(NamedTuple):
    """The skills in force at one step of one team."""

    team_skill: int
    agent_skills: tuple[int, ...]  # one per agent


class Caption(NamedTuple):
    """Everything a caption says about one step."""

    step: int
    episode_return: float  # sum of the rewards so far
    skills: Skills | None  # None if the model has no skills
    skills_assigned: bool  # True at the step at which the skills were chosen
    note: str  # e.g. how the episode ended; may be empty
    present: tuple[bool, ...] | None = None  # one per agent, who is in the game; None for all


def draw_frame(picture: npt.NDArray[np.uint8], caption: Caption, agent_names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """
    Put a caption below a picture. Same-sized pictures of the same team give same-sized frames, as a GIF needs.

    :param picture: (height, width, 3) as rendered with ``render_mode="rgb_array"``
    :param caption: what to write
    :param agent_names: one per agent
    :return: (height', width', 3); enlarged by a whole factor if the picture is narrower than the caption needs
    :raises ValueError: if the picture has another shape or type
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a rendered picture must be uint8 of shape (height, width, 3), got {picture.dtype} {picture.shape}")
    image = _enlarge(Image.fromarray(picture))
    font = ImageFont.load_default(_FONT_SIZE)
    rows = _chip_rows(caption, agent_names, image.width - 2 * _MARGIN, font)
    panel = _draw_panel(image.width, caption, rows, font)
    frame = Image.new("RGB", (image.width, image.height + panel.height))
    frame.paste(image, (0, 0))
    frame.paste(panel, (0, image.height))
    return np.asarray(frame)


class _Chip(NamedTuple):
    """A coloured label."""

    text: str
    colour: Colour
    width: int  # pixels


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def _enlarge(image: Image.Image) -> Image.Image:
    factor = -(-_MIN_WIDTH // image.width)
    # Whole factors and nearest neighbour keep the cells of small grids sharp.
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _chip_rows(caption: Caption, agent_names: tuple[str, ...], width: int, font: Font) -> list[list[_Chip]]:
    """Labels broken into rows of at most ``width`` pixels. Independent of the skills' values, so rows never jump."""
    if caption.skills is None:
        return []
    team_skill, agent_skills = caption.skills
    present = caption.present or (True,) * len(agent_skills)
    labels: list[tuple[str, int | None, tuple[Colour, ...]]] = [("team skill Z", team_skill, TEAM_SKILL_COLOURS)]
    for name, agent_skill, there in zip(agent_names, agent_skills, present, strict=True):
        labels.append((f"{name}  z", agent_skill if there else None, AGENT_SKILL_COLOURS))
    rows: list[list[_Chip]] = [[]]
    used = 0
    for name, skill, colours in labels:
        # Room for two digits whatever the skill is.
        text, colour = ("-", _ABSENT) if skill is None else (str(skill), colours[skill % len(colours)])
        chip = _Chip(f"{name} {text}", colour, int(font.getlength(f"{name} 88")) + 20)
        if rows[-1] and used + chip.width > width:
            rows.append([])
            used = 0
        rows[-1].append(chip)
        used += chip.width + _CHIP_GAP
    return rows


def _draw_panel(width: int, caption: Caption, rows: list[list[_Chip]], font: Font) -> Image.Image:
    header = 2 * _FONT_SIZE
    chips_top = header + _CHIP_GAP + 2
    height = chips_top + len(rows) * (_CHIP_HEIGHT + _CHIP_GAP) + 2 if rows else header
    panel = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(panel)
    if caption.skills_assigned:
        draw.rectangle((0, 0, width, header), fill=_HIGHLIGHT)
    middle = header // 2
    draw.text((_MARGIN, middle), f"step {caption.step}", fill=_INK, font=font, anchor="lm")
    draw.text((width - _MARGIN, middle), f"reward {caption.episode_return:.4g}", fill=_INK, font=font, anchor="rm")
    note = caption.note or ("new skills" if caption.skills_assigned else "")
    draw.text((width // 2, middle), note, fill=_INK, font=font, anchor="mm")
    draw.line((0, 0, width, 0), fill=_BORDER)
    for index, row in enumerate(rows):
        left, top = _MARGIN, chips_top + index * (_CHIP_HEIGHT + _CHIP_GAP)
        for chip in row:
            box = (left, top, left + chip.width, top + _CHIP_HEIGHT)
            draw.rounded_rectangle(box, radius=6, fill=chip.colour)
            centre = (left + chip.width // 2, top + _CHIP_HEIGHT // 2)
            draw.text(centre, chip.text, fill=_readable_on(chip.colour), font=font, anchor="mm")
            left += chip.width + _CHIP_GAP
    return panel


def _readable_on(colour: Colour) -> Colour:
    red, green, blue = colour
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    return (20, 20, 20) if luminance > 125 else (255, 255, 255)
