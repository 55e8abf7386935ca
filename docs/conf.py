"""Configuration of the documentation: `python -m sphinx -W --keep-going docs build/site`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cyce

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.record import RESULTS, RUNS  # noqa: E402

project = "cyce"
author = "cyce developers"
copyright = "cyce developers"
version = release = cyce.__version__

extensions = [
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates", "pictures", "generated/examples/**.ipynb"]
nitpicky = True
nitpick_ignore_regex = [
    # Other projects: no inventory is fetched when this is built.
    ("py:.*", r"(torch|numpy|threadpoolctl|contextvars|jax|mlx|matplotlib|dask|xgboost|lightgbm)(\..*)?"),
    # In single backticks, names without a dot may be arguments.
    ("py:obj", r"[^.]+"),
]

# Markdown
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings. Without types in signatures: numpydoc's lists have them, and each overload would be shown.
autodoc_typehints = "none"
# Methods of torch.nn.Module have torch's.
autodoc_inherit_docstrings = False
autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
# Single backticks: a link where there is something to link to.
default_role = "autolink"

# Pictures that the pages draw
plot_html_show_formats = False
plot_html_show_source_link = False
plot_formats = [("png", 110)]
plot_basedir = str(HERE)

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "generated/examples",
    # The others need ranks or workers.
    "ignore_pattern": "__init__",
    "filename_pattern": r"/(boost|distill|evaluate_files|newton|policy)\w*\.py",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "remove_config_comments": True,
}

html_theme = "pydata_sphinx_theme"
html_title = f"cyce {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_favicon = "logo.svg"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "logo": {"text": "cyce", "image_light": "logo.svg", "image_dark": "logo.svg"},
    "navigation_with_keys": False,
    "show_prev_next": True,
    "navbar_align": "left",
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}


def describe_machine(results):
    """Return a heading and a sentence on the machine of some results."""
    machines = [result["machine"] for result in results.values()]
    machine = machines[0]
    name = machine.get("model name", machine["system"])
    caches = ", ".join(
        f"{key.removesuffix(' cache')} {size}" for key, size in machine.items() if "cache" in key
    )
    kind = ", ".join(f"{key} {machine[key]}" for key in ("cpu family", "model") if key in machine)
    heading = f"{name} ({kind})" if kind else name
    return heading, f"{machine['cpus']} CPUs; caches of the first: {caches}; {machine['system']}."


def results_page():
    """Return the recorded results of all machines, in Markdown."""
    lines = []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        paths = {name: folder / f"{name}.json" for name in RUNS}
        results = {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()}
        heading, sentence = describe_machine(results)
        lines += [f"## {heading}", "", sentence, ""]
        for name, result in results.items():
            lines += [f"### {name.replace('_', ' ').capitalize()}", "", f"{result['note']}.", ""]
            for table in result["tables"]:
                cells = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
                lines += [f"**{table['title']}**", ""]
                lines += ["| " + " | ".join(row) + " |" for row in cells]
                lines.append("")
            versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
            lines += [
                f"```sh\n{result['command']}\n```",
                "",
                f"{result['date'][:10]}, commit {result['commit']}; {versions}.",
                "",
            ]
    return "\n".join(lines)


def commands_page():
    """Return what the commands print of themselves, in Markdown."""
    lines = []
    for name in ("demo", "info", "compare", "evaluate", "divergence"):
        command = [sys.executable, "-m", "cyce", name, "--help"]
        environment = {**os.environ, "COLUMNS": "90", "NO_COLOR": "1"}
        text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        lines += [f"## {name}", "", "```text", text.rstrip(), "```", ""]
    return "\n".join(lines)


MADE_PARTS = {"performance": results_page, "reference/command_line": commands_page}
"""By page: what returns its last part."""


def insert_made_parts(_app, docname, source):
    """Add what is made at build time to a page."""
    if docname in MADE_PARTS:
        source[0] += "\n" + MADE_PARTS[docname]()


def setup(app):
    """Connect what is done at build time."""
    app.connect("source-read", insert_made_parts)
    # Pictures and examples draw to files.
    import matplotlib as mpl

    mpl.use("agg")
    return {"parallel_read_safe": True}
