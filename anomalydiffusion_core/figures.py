"""Images for people: contact sheets, heat maps and curves, all as [3,H,W] float32 in [0,1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BACKGROUND = (24, 26, 30)
TEXT = (226, 228, 232)
OUTLINE = (1.0, 0.2, 0.9)
GAP = 4
LABEL = 13


def contact_sheet(
    rows: Sequence[Sequence[Tensor | None]],
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] | None = None,
    cell: int = 160,
) -> Tensor:
    """Lay images out in rows, each fitted into a square cell with its aspect kept.

    Args:
        rows: images [3,H,W], masks [1,H,W] or maps [H,W] in [0,1]; None leaves a cell empty. Rows may differ in
            length.
        column_titles, row_titles: small labels above and to the left; text too long for its place is cut.
        cell: edge of a cell in pixels.

    Raises:
        InputError: nothing to show, or an image of another shape.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise InputError("rows: no images. Give at least one.")
    if cell < 8:
        raise InputError(f"cell: {cell} px. Give at least 8.")
    font = ImageFont.load_default(size=LABEL)
    margin_top = LABEL + 2 * GAP if any(column_titles) else GAP
    margin_left = GAP
    if row_titles and any(row_titles):
        longest = max(round(font.getlength(title)) for title in row_titles)
        margin_left = min(longest, 2 * cell) + 2 * GAP
    size = (margin_left + columns * (cell + GAP), margin_top + len(rows) * (cell + GAP))
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, title in enumerate(column_titles[:columns]):
        text = _fitted(title, font, cell)
        draw.text((margin_left + index * (cell + GAP) + cell / 2, margin_top / 2), text, TEXT, font, anchor="mm")
    for line, row in enumerate(rows):
        top = margin_top + line * (cell + GAP)
        if row_titles and line < len(row_titles):
            text = _fitted(row_titles[line], font, margin_left - 2 * GAP)
            draw.text((margin_left - GAP, top + cell / 2), text, TEXT, font, anchor="rm")
        for column, image in enumerate(row):
            if image is not None:
                thumbnail = _thumbnail(image, cell)
                left = margin_left + column * (cell + GAP) + (cell - thumbnail.width) // 2
                canvas.paste(thumbnail, (left, top + (cell - thumbnail.height) // 2))
    return _to_tensor(np.asarray(canvas))


def stacked(sheets: Sequence[Tensor]) -> Tensor:
    """Sheets [3,H,W] below each other, narrower ones filled up on the right."""
    width = max(sheet.shape[2] for sheet in sheets)
    colour = torch.tensor(BACKGROUND, dtype=torch.float32)[:, None, None] / 255
    wide = []
    for sheet in sheets:
        filled = colour.expand(3, sheet.shape[1], width).clone()
        filled[:, :, : sheet.shape[2]] = sheet
        wide.append(filled)
    return torch.cat(wide, dim=1)


def detail(image: Tensor, mask: Tensor, context: float = 1.4, least: int = 24) -> Tensor:
    """The square window [C,n,n] of an image [C,H,W] around its mask [1,H,W], moved as needed to lie in the image.

    Args:
        context: side of the window over the longer side of the mask's box.
        least: smallest side in pixels.

    Raises:
        InputError: the mask is empty or of another size.
    """
    if image.shape[1:] != mask.shape[1:] or not bool(mask.any()):
        raise InputError(f"mask: empty, or of the size {tuple(mask.shape[1:])} for {tuple(image.shape[1:])} pixels.")
    rows, columns = torch.nonzero(mask[0] > 0, as_tuple=True)
    low = (int(rows.min()), int(columns.min()))
    high = (int(rows.max()) + 1, int(columns.max()) + 1)
    side = max(least, round(context * max(high[0] - low[0], high[1] - low[1])))
    side = min(side, *image.shape[1:])
    top, left = (
        min(max((a + b - side) // 2, 0), length - side)
        for a, b, length in zip(low, high, image.shape[1:], strict=True)
    )
    return image[:, top : top + side, left : left + side]


def outlined(image: Tensor, mask: Tensor) -> Tensor:
    """An image [3,H,W] with the pixels around its mask [1,H,W] coloured; what the mask covers stays as it is."""
    width = max(1, round(max(image.shape[1:]) / 256))
    wide = F.max_pool2d(mask[None].float(), 2 * width + 1, 1, width)[0]
    line = (wide > 0) & (mask == 0)
    return torch.where(line, torch.tensor(OUTLINE)[:, None, None], image)


def comparison_sheet(before: Tensor, after: Tensor, masks: Tensor, shown: int = 8, cell: int = 224) -> Tensor:
    """Rows of before | after | mask for the first ``shown`` samples, as one image [3,H,W].

    Args:
        before, after: [B, 3, H, W] in [0, 1]; a single ``before`` belongs to all.
        masks: [B, 1, H, W]; their outlines are drawn on ``before``.
    """
    rows: list[list[Tensor | None]] = []
    for number, (image, mask) in enumerate(zip(after[:shown], masks[:shown], strict=True)):
        normal = before[number if len(before) > 1 else 0]
        rows.append([outlined(normal, mask), image, mask])
    return contact_sheet(rows, ["before", "after", "mask"], cell=cell)


def heat_map(score: Tensor, image: Tensor, limits: tuple[float, float] = (0.0, 1.0), strength: float = 0.6) -> Tensor:
    """Colour a score map [H,W] over its image [3,H,W] (grey underneath), blue for low and red for high.

    The colours stand for fixed values (`limits`), not for the range of this one map: a map of a normal image stays
    blue instead of showing its noise in red.

    Raises:
        InputError: sizes differ or the limits are not ascending.
    """
    if score.ndim != 2 or image.ndim != 3 or tuple(score.shape) != tuple(image.shape[1:]):
        raise InputError(f"score: shape {tuple(score.shape)} for an image {tuple(image.shape)}. Give equal sizes.")
    low, high = limits
    if not low < high:
        raise InputError(f"limits: {limits}. Give the lower value first.")
    import matplotlib

    scaled = ((score.detach().float().cpu() - low) / (high - low)).clamp(0, 1).nan_to_num(0.0)
    colours = torch.from_numpy(matplotlib.colormaps["turbo"](scaled.numpy())[..., :3].astype(np.float32))
    grey = image.detach().float().cpu().mean(dim=0, keepdim=True).expand(3, -1, -1)
    return ((1 - strength) * grey + strength * colours.permute(2, 0, 1)).clamp(0, 1)


def plot_curve(
    values: Sequence[float] | Mapping[str, Sequence[float]],
    title: str = "",
    x_label: str = "step",
    y_label: str = "loss",
    size: tuple[int, int] = (640, 400),
) -> Tensor:
    """Plot one curve, or several named ones, over 1..N. Long noisy curves get a moving average on top.

    Args:
        size: (width, height) in pixels.
    """
    curves = dict(values) if isinstance(values, Mapping) else {"": values}
    figure = new_figure(size)
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        points = np.asarray(list(curve), dtype=np.float64)
        steps = np.arange(1, len(points) + 1)
        window = len(points) // 20
        colour = f"C{number}"
        marker = "o" if len(points) == 1 else ""
        axes.plot(steps, points, color=colour, linewidth=1, alpha=0.35 if window > 1 else 1.0, marker=marker)
        if window > 1:
            smooth = np.convolve(points, np.ones(window) / window, mode="valid")
            axes.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.8)
        if name:
            axes.plot([], [], color=colour, label=name)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    if any(curves):
        axes.legend()
    return figure_tensor(figure)


def new_figure(size: tuple[int, int], layout: Any = "constrained") -> Figure:
    """An empty matplotlib figure of ``size`` (width, height) in pixels, away from pyplot and its windows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def figure_tensor(figure: Figure) -> Tensor:
    """A drawn figure as an image [3, H, W] in [0, 1]."""
    canvas: Any = figure.canvas
    canvas.draw()
    return _to_tensor(np.asarray(canvas.buffer_rgba())[..., :3])


def _thumbnail(image: Tensor, cell: int) -> Image.Image:
    pixels = image[None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise InputError(f"rows: an image of shape {tuple(image.shape)}. Give [3,H,W], [1,H,W] or [H,W].")
    array = to_bytes(pixels.expand(3, -1, -1)).transpose(1, 2, 0)
    whole = Image.fromarray(np.ascontiguousarray(array))
    factor = cell / max(whole.size)
    size = (max(1, round(whole.width * factor)), max(1, round(whole.height * factor)))
    # enlarging must show the pixels there are, not invent soft ones
    return whole.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255.0).permute(2, 0, 1).contiguous()


def to_bytes(image: Tensor) -> np.ndarray:
    """Values in [0,1] of any shape as the nearest of 0..255 (uint8). A truncating cast would darken k/255 by one."""
    require_finite(image)
    return (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def require_finite(pixels: Tensor) -> None:
    """Raise InputError for NaN and infinite values."""
    if not bool(torch.isfinite(pixels).all()):
        raise InputError("pixels: contain NaN or infinite values. Nothing was written; check the step that made them.")
