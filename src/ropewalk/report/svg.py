"""Figures as SVG inside the page: text stays text, and colours are CSS variables that follow light and dark."""

import re
from io import BytesIO
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

DARK = {
    # paper, ink, lines
    "#ffffff": "#171716", "#222222": "#e9e7e2", "#000000": "#e9e7e2", "#8a8a8a": "#8f8c86", "#5c5c5c": "#b5b2ab",
    "#e6e6e6": "#33322f", "#f3ead8": "#2b271e",
    # methods
    "#555555": "#b0aea8", "#56b4e9": "#8fd3ff", "#009e73": "#2fc79a", "#b8a800": "#d0c22a", "#0072b2": "#4a90e2",
    "#7a5195": "#b48ad6", "#cc79a7": "#e59cc6", "#d55e00": "#ff7f27", "#3d7a00": "#7cc23a", "#a05000": "#d98c4a",
    "#4b4b9f": "#9a9ae8",
    # ours by length: what is darkest on white is lightest on black
    "#f5a26b": "#8f5228", "#e07b33": "#bd6a30", "#a34700": "#ffa766", "#6b2e00": "#ffd2ab",
}  # fmt: skip
"""Colours of figures with their counterparts on a dark page; all others are the same on both."""

_FONT = "system-ui, sans-serif"


def colour_rules(*, dark: bool) -> str:
    """CSS declarations of the variables that `inline` makes of the colours."""
    return " ".join(f"--c{light[1:]}: {other if dark else light};" for light, other in DARK.items())


def inline(figure: Figure, *, name: str, alt: str) -> str:
    """``figure`` as an <svg> element for an HTML page, the same text for the same figure.

    ``name`` is put before every id, so that two figures on a page share none; ``alt`` is the alternative text.
    """
    FigureCanvasSVG(figure)
    buffer = BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ropewalk"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)[\")]", buffer.getvalue().decode("utf-8")))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        element.attrib = {key: _value(key, value, name) for key, value in attributes.items()}
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    if key != "style":
        return value
    value = re.sub(r"(font: [^;]*?[\d.]+px )[^;]*", rf"\g<1>{_FONT}", value)
    return re.sub("|".join(rf"{colour}\b" for colour in DARK), lambda colour: f"var(--c{colour[0][1:]})", value)
