"""Pictures of JaxMARL's Overcooked and SMAX, drawn with Pillow. Knows their states' fields, but needs no JAX."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

CELL_PIXELS = 64
FIELD_PIXELS = 512
# Everything is drawn this many times larger and scaled down, which smooths the edges.
_OVERSAMPLING = 2

_COUNTER = (181, 146, 104)
_FLOOR = (240, 236, 226)
_LINE = (214, 206, 190)
_DARK = (52, 58, 70)
_WHITE = (255, 255, 255)
_ONION = (232, 190, 60)
_SOUP = (222, 120, 40)
_SERVE = (96, 158, 92)
_COOKS = ((222, 68, 68), (52, 116, 224))
_GRASS = (226, 232, 218)
_ALLY = (52, 116, 224)
_ENEMY = (222, 68, 68)
# What a pot's number says: 23 is empty, 20 is three onions, and then it counts down to 0, done.
_POT_EMPTY, _POT_FULL = 23, 20


def draw_overcooked(state: Any, objects: dict[str, int]) -> NDArray[np.uint8]:
    """The kitchen: counters, piles, pots with their onions or the steps left to cook, and the cooks with what they hold.

    :param state: JaxMARL's state with NumPy arrays
    :param objects: JaxMARL's number of each kind of object
    :return: (height * 64, width * 64, 3)
    """
    height, width = state.wall_map.shape
    margin = (state.maze_map.shape[0] - height) // 2
    cells = state.maze_map[margin : margin + height, margin : margin + width]
    names = {number: name for name, number in objects.items()}
    unit = CELL_PIXELS * _OVERSAMPLING
    image = Image.new("RGB", (width * unit, height * unit), _FLOOR)
    draw = ImageDraw.Draw(image)
    for y in range(height):
        for x in range(width):
            fill = _COUNTER if state.wall_map[y, x] else _FLOOR
            draw.rectangle((x * unit, y * unit, (x + 1) * unit, (y + 1) * unit), fill=fill, outline=_LINE, width=2)
            _draw_object(draw, names[int(cells[y, x, 0])], int(cells[y, x, 2]), ((x + 0.5) * unit, (y + 0.5) * unit), unit)
    for colour, (x, y), facing, held in zip(_COOKS, state.agent_pos, state.agent_dir, state.agent_inv, strict=True):
        centre = ((int(x) + 0.5) * unit, (int(y) + 0.5) * unit)
        _disc(draw, centre, 0.36 * unit, colour, _DARK)
        nose = (centre[0] + 0.36 * unit * int(facing[0]), centre[1] + 0.36 * unit * int(facing[1]))
        _disc(draw, nose, 0.09 * unit, _DARK)
        _draw_object(draw, names[int(held)], 0, centre, unit)
    return np.asarray(image.resize((width * CELL_PIXELS, height * CELL_PIXELS), Image.Resampling.BOX))


def draw_smax(
    units: Any, field: tuple[float, float], n_allies: int, radii: NDArray[Any], health: NDArray[Any], letters: list[str]
) -> NDArray[np.uint8]:
    """The battlefield from above: living units as discs, allies blue and enemies red, with their health as a bar.

    :param units: SMAX's state with NumPy arrays; U units, allies first
    :param field: width and height of the map
    :param radii: of each type of unit, in the map's units
    :param health: full health of each type of unit
    :param letters: one for each type of unit
    :return: (512, 512, 3) for a square map; the longer side has 512 pixels
    """
    scale = FIELD_PIXELS * _OVERSAMPLING / max(field)
    size = (round(field[0] * scale), round(field[1] * scale))
    image = Image.new("RGB", size, _GRASS)
    draw = ImageDraw.Draw(image)
    for index in np.flatnonzero(units.unit_alive).tolist():
        kind = int(units.unit_types[index])
        # The map's y points upwards, a picture's downwards.
        x, y = float(units.unit_positions[index, 0]) * scale, size[1] - float(units.unit_positions[index, 1]) * scale
        radius = float(radii[kind]) * scale
        _disc(draw, (x, y), radius, _ALLY if index < n_allies else _ENEMY, _DARK)
        draw.text((x, y), letters[kind], fill=_WHITE, font=_font(int(radius * 1.2)), anchor="mm")
        left, top, length = x - radius, y - 1.5 * radius, 2 * radius
        draw.rectangle((left, top, left + length, top + 0.25 * radius), fill=_DARK)
        left_over = length * float(units.unit_health[index]) / float(health[kind])
        draw.rectangle((left, top, left + left_over, top + 0.25 * radius), fill=_SERVE)
    return np.asarray(image.resize((size[0] // _OVERSAMPLING, size[1] // _OVERSAMPLING), Image.Resampling.BOX))


def _draw_object(draw: ImageDraw.ImageDraw, name: str, number: int, centre: tuple[float, float], unit: int) -> None:
    """One thing in the kitchen; nothing for floor, counters and cooks.

    :param number: of a pot: what is in it
    """
    x, y = centre
    if name == "goal":
        draw.rectangle((x - 0.5 * unit, y - 0.5 * unit, x + 0.5 * unit, y + 0.5 * unit), fill=_SERVE)
        draw.text(centre, "serve", fill=_WHITE, font=_font(unit // 4), anchor="mm")
    elif name == "onion_pile":
        for dx, dy in ((-0.18, 0.12), (0.18, 0.12), (0.0, -0.16)):
            _disc(draw, (x + dx * unit, y + dy * unit), 0.17 * unit, _ONION, _DARK)
    elif name == "plate_pile":
        for dy in (0.16, 0.0, -0.16):
            _disc(draw, (x, y + dy * unit), 0.24 * unit, _WHITE, _DARK)
    elif name == "onion":
        _disc(draw, centre, 0.17 * unit, _ONION, _DARK)
    elif name in ("plate", "dish"):
        _disc(draw, centre, 0.22 * unit, _WHITE, _DARK)
        if name == "dish":
            _disc(draw, centre, 0.14 * unit, _SOUP)
    elif name == "pot":
        done = number == 0
        _disc(draw, centre, 0.40 * unit, _SOUP if done else _DARK, _DARK)
        if number >= _POT_FULL:
            for onion in range(_POT_EMPTY - number):
                _disc(draw, (x + (onion - 1) * 0.22 * unit, y), 0.10 * unit, _ONION)
        else:
            draw.text(centre, "done" if done else str(number), fill=_WHITE, font=_font(unit // 4), anchor="mm")


def _disc(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, fill: Colour, outline: Colour | None = None
) -> None:
    (x, y), width = centre, _OVERSAMPLING if outline else 0
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=outline, width=width)


@lru_cache(maxsize=16)
def _font(pixels: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=pixels)
