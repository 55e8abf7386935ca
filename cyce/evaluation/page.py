"""A page of HTML that shows a result: one file, with its pictures, without any address."""

import base64
import html
import io
from typing import Any

import cyce
from cyce.evaluation.divergence import Divergence
from cyce.evaluation.record import MOST_LISTED_CLASSES, Evaluation, number, percent

STYLE = """
body { font-family: system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.15rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child { text-align: left; font-weight: normal; }
thead th { font-weight: bold; }
img { max-width: 100%; }
footer { color: #777; font-size: 0.85rem; }
"""


def png_of(figure: Any) -> bytes:
    """Return a figure as a PNG."""
    buffer = io.BytesIO()
    # Without the address of matplotlib's site.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _cells(tag: str, texts: tuple[str, ...]) -> str:
    """Return cells of a row; the first is its head."""
    first, *others = (html.escape(text) for text in texts)
    return f"<tr><th scope='row'>{first}</th>{''.join(f'<{tag}>{text}</{tag}>' for text in others)}</tr>"


def _classes(result: Evaluation) -> str:
    """Return the table of the classes; nothing if there are too many."""
    classes = result.per_class
    if not 0 < len(classes.counts) <= MOST_LISTED_CLASSES:
        return ""
    head = _cells("th", ("class", "positions", "predicted", "loss", "accuracy", "IoU"))
    rows = (
        _cells(
            "td",
            (
                str(c),
                f"{classes.counts[c]:,}",
                f"{classes.n_predicted[c]:,}",
                number(classes.loss[c]),
                percent(classes.accuracy[c]),
                percent(classes.iou[c]),
            ),
        )
        for c in range(len(classes.counts))
    )
    return f"<h2>Classes</h2><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def page_of(result: Evaluation | Divergence, title: str, files: list[tuple[str, str]]) -> str:
    """Return the page of a result.

    files: what was read, by its role.
    """
    picture = base64.b64encode(png_of(result.plot())).decode()
    kind = "Evaluation" if isinstance(result, Evaluation) else "Divergence"
    what = "reliability and losses" if isinstance(result, Evaluation) else "divergences of the positions"
    rows = "".join(_cells("td", row) for row in (*files, *result.rows()))
    return (
        "<!DOCTYPE html>\n"
        f"<html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head>\n"
        f"<body><h1>{kind}</h1><table>{rows}</table>\n"
        f"<img alt='{what}' src='data:image/png;base64,{picture}'>\n"
        f"{_classes(result) if isinstance(result, Evaluation) else ''}"
        f"<footer>cyce {html.escape(cyce.__version__)}</footer></body></html>\n"
    )
