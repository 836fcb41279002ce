"""Pictures of Alice and Bob's world: an RGB array drawn with Pillow, and plain text."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hmasd_sb3.envs.alice_and_bob_rules import AGENTS, COLOURS, BoolArray, CellArray, World

CELL_PIXELS = 48
# Everything is drawn this many times larger and scaled down, which smooths the edges.
_OVERSAMPLING = 3
# Thickness of the wall, in cells.
_WALL_CELLS = 0.5

_WALL = (52, 58, 70)
_FLOORS = ((247, 244, 237), (240, 236, 226))
_FILL = {"red": (222, 68, 68), "blue": (52, 116, 224)}
_EDGE = {"red": (146, 32, 36), "blue": (26, 66, 148)}
_DIM = {"red": (236, 190, 186), "blue": (184, 202, 236)}
_AGENT = {"alice": (148, 72, 176), "bob": (24, 140, 108)}
_WHITE = (255, 255, 255)


def draw_frame(world: World, cells: CellArray, collected: BoolArray) -> NDArray[np.uint8]:
    """The situation as a picture: buttons are squares (lit while held), diamonds fade once collected.

    :param world: the map
    :param cells: (2,) cells of the agents
    :param collected: (2,) diamonds in hand, per colour
    :return: ((size + 1) * 48, (size + 1) * 48, 3) uint8; the wall is half a cell thick
    """
    image = Image.fromarray(_floor(world.size)).copy()
    draw = ImageDraw.Draw(image)
    for index, colour in enumerate(COLOURS):
        _draw_button(draw, _centre(world, int(world.buttons[index])), colour, bool((cells == world.buttons[index]).any()))
        _draw_diamond(draw, _centre(world, int(world.diamonds[index])), colour, bool(collected[index]))
    _draw_agents(draw, world, cells)
    edge = (world.size + 1) * CELL_PIXELS
    return np.asarray(image.resize((edge, edge), Image.Resampling.BOX))


def draw_text(world: World, cells: CellArray, collected: BoolArray) -> str:
    """The situation as text: ``r_``, ``b_`` buttons, ``r*``, ``b*`` diamonds, then ``A``, ``B``, or ``&`` for both.

    :param world: the map
    :param cells: (2,) cells of the agents
    :param collected: (2,) diamonds in hand, per colour
    :return: a grid with walls and a line that says which diamonds are in hand, ending in a newline
    """
    grid = [" . "] * world.n_cells
    for index, colour in enumerate(COLOURS):
        grid[int(world.buttons[index])] = f"{colour[0]}_ "
        if not collected[index]:
            grid[int(world.diamonds[index])] = f"{colour[0]}* "
    names = [agent[0].upper() for agent in AGENTS]
    for index, cell in enumerate(cells):
        mark = "&" if cells[0] == cells[1] else names[index]
        grid[int(cell)] = grid[int(cell)][:2] + mark
    wall = "#" * (3 * world.size + 2)
    rows = ["#" + "".join(grid[start : start + world.size]) + "#" for start in range(0, world.n_cells, world.size)]
    in_hand = ", ".join(colour for colour, flag in zip(COLOURS, collected, strict=True) if flag) or "none"
    return "\n".join([wall, *rows, wall, f"diamonds in hand: {in_hand}"]) + "\n"


def _scaled(length: float) -> float:
    """A length given in cells, in pixels of the enlarged drawing."""
    return length * CELL_PIXELS * _OVERSAMPLING


def _centre(world: World, cell: int) -> tuple[float, float]:
    y, x = divmod(cell, world.size)
    return _scaled(x + _WALL_CELLS + 0.5), _scaled(y + _WALL_CELLS + 0.5)


@lru_cache(maxsize=4)
def _floor(size: int) -> NDArray[np.uint8]:
    """Walls and a chequered floor, drawn once per size."""
    edge = int(_scaled(size + 2 * _WALL_CELLS))
    image = Image.new("RGB", (edge, edge), _WALL)
    draw = ImageDraw.Draw(image)
    for y in range(size):
        for x in range(size):
            left, top = _scaled(x + _WALL_CELLS), _scaled(y + _WALL_CELLS)
            draw.rectangle((left, top, left + _scaled(1) - 1, top + _scaled(1) - 1), fill=_FLOORS[(x + y) % 2])
    return np.asarray(image)


def _draw_button(draw: ImageDraw.ImageDraw, centre: tuple[float, float], colour: str, held: bool) -> None:
    """A square in a frame; while somebody stands on it, it fills its cell and the frame lights up."""
    x, y = centre
    framed = ((0.48, _FILL[colour]), (0.42, _WHITE), (0.37, _FILL[colour])) if held else ()
    for reach, fill in framed or ((0.40, _EDGE[colour]), (0.33, _FILL[colour])):
        r = _scaled(reach)
        draw.rounded_rectangle((x - r, y - r, x + r, y + r), radius=_scaled(0.07), fill=fill)


def _draw_diamond(draw: ImageDraw.ImageDraw, centre: tuple[float, float], colour: str, collected: bool) -> None:
    """A rotated square with a bright facet; only a faint outline is left of a collected one."""
    x, y = centre
    r = _scaled(0.40)
    corners = [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
    if collected:
        draw.polygon(corners, outline=_DIM[colour], width=int(_scaled(0.06)))
        return
    draw.polygon(corners, fill=_EDGE[colour])
    r = _scaled(0.33)
    draw.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=_FILL[colour])
    light = tuple((channel + 2 * 255) // 3 for channel in _FILL[colour])
    r = _scaled(0.20)
    draw.polygon([(x, y - r), (x, y), (x - r, y)], fill=light)


def _draw_agents(draw: ImageDraw.ImageDraw, world: World, cells: CellArray) -> None:
    """A labelled disc per agent; two on one cell stand side by side, smaller."""
    shared = bool(cells[0] == cells[1])
    radius = 0.22 if shared else 0.30
    font = _font(int(_scaled(radius * 1.15)))
    for index, agent in enumerate(AGENTS):
        x, y = _centre(world, int(cells[index]))
        if shared:
            x += _scaled(0.23) * (2 * index - 1)
        r = _scaled(radius)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_AGENT[agent], outline=_WHITE, width=int(_scaled(0.05)))
        draw.text((x, y), agent[0].upper(), fill=_WHITE, font=font, anchor="mm")


@lru_cache(maxsize=8)
def _font(pixels: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=pixels)
