"""How all pictures look: size, colours, and small files."""

import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)

# Of Okabe and Ito: told apart by the colour-blind too.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]

plt.rcParams.update(
    {
        "figure.figsize": (8, 4.5),
        "figure.dpi": 100,
        "font.size": 10,
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
    }
)


def save(figure, folder, name):
    """Writes the figure as a PNG of a palette of colours, which is a third of the size."""
    from PIL import Image

    path = os.path.join(folder, f"{name}.png")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
