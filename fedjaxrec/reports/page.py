"""A page that opens offline: styles, plotly.js and numbers in one HTML file."""

import html
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from fedjaxrec.reports import figures, run_directory

# A second fence: even a mistake on a page loads nothing from anywhere.
_POLICY = ("default-src 'none'; script-src 'unsafe-inline'; "
           "style-src 'unsafe-inline'; img-src data: blob:; font-src data:")


def render_page(
    title: str, body: str, plots: Mapping[str, figures.Figure],
    wide: bool = False
) -> str:
  """Renders a page, some 5 MB, most of it plotly.js.

  Args:
    title: The page's title, plain text.
    body: HTML of what is shown, with a place for each plot (see `plot`).
    plots: Figures by the id of their place.
    wide: Whether its tables need all the width that a window has.
  """
  from plotly.offline import get_plotlyjs  # Only a page needs it.

  # Inside a script element nothing but '<' can end it.
  data = json.dumps(run_directory.to_plain(plots)).replace('<', '\\u003c')
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>
{_asset('report.css')}</style>
</head>
<body>
<main{' class="wide"' if wide else ''}>
{body}</main>
<script type="application/json" id="figures">{data}</script>
<script>{get_plotlyjs()}</script>
<script>
{_asset('report.js')}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
  folder = importlib.resources.files('fedjaxrec.reports')
  return (folder / name).read_text(encoding='utf-8')


def escape(value: Any) -> str:
  """What comes from a run, as text of a page."""
  return html.escape(str(value), quote=True)


def section(title: str, *parts: str) -> str:
  """A section with a heading."""
  return f'<section>\n<h2>{escape(title)}</h2>\n{"".join(parts)}</section>\n'


def plot(
    plots: dict[str, figures.Figure],
    name: str,
    figure: figures.Figure | None,
    missing: str,
    size: str = '',
    height: int = 0,
) -> str:
  """Places a plot, or says what is missing.

  Args:
    plots: The page's figures; this one is added.
    name: The id of its place.
    figure: The figure, or None.
    missing: What is said without one.
    size: short, tall or empty: how high it is.
    height: In pixels, in place of the size.
  """
  if figure is None:
    return f'<p class="card missing">{escape(missing)}</p>\n'
  plots[name] = figure
  title = escape(figure['layout']['title']['text'])
  style = f' style="height:{height}px"' if height else ''
  return (f'<div class="card"><div class="plot {size}" id="{name}" role="img" '
          f'aria-label="{title}"{style}></div></div>\n')
