"""How the documentation is built: `make docs`, from the folder above."""

import base64
import json
import pathlib
import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator

import mhd_jax

project = "mhd_jax"
author = "The mhd_jax authors"
project_copyright = "the mhd_jax authors, Apache-2.0"
version = release = mhd_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings are Google's form. A name in single backticks is a link where it is documented.
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "replace"}
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
# What is ours must be found. What is not ours is a name: there is no index of other libraries offline.
nitpick_ignore_regex = [(r"py:.*", r"(?s)(?!mhd_jax\.).*")]
nitpick_ignore = [  # fields that the engine sets, in signatures alone
    ("py:class", "mhd_jax.engine.answers.Answers"),
    ("py:class", "mhd_jax.runs.callbacks.base.Present"),
    ("py:class", "mhd_jax.runs.callbacks.base.Stop"),
]

html_theme = "furo"
html_title = f"mhd_jax {release}"
html_static_path = ["_static"]
html_css_files = ["math.css"]
html_math_renderer = "mathml"
html_show_sphinx = False


def show_formula(html: HTML5Translator, node: nodes.Element) -> None:
    """Formulas as MathML, which browsers show without a script or a network."""
    is_block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=is_block)
    except MathError as error:
        raise SphinxError(f"{html.builder.current_docname}, {node.astext()!r}: {error}") from error
    html.body.append(f'<div class="formula">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def keep_form(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """What docstrings mean where reStructuredText would read something else.

    "num_clients: K." is no list that starts at K. Indented lines of a module's docstring are formulas
    or examples.
    """
    lines[:] = [re.sub(r"(^\s*|: )([A-Z]\.)$", r"\1\\\2", line) for line in lines]
    if what != "module":
        return
    kept: list[str] = []
    inside = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not inside and kept and not kept[-1]:
            kept += ["::", ""]
        if line:
            inside = indented
        kept.append(line)
    lines[:] = kept


def plain_defaults(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Signatures with a function or a factory as default are Python, too."""
    return signature and (re.sub(r"<(?:function )?(\w+)>", r"\1", signature), returns)


def write_notebooks(app: Sphinx) -> None:
    """Writes each notebook as a page, with what it printed and drew, into docs/notebooks."""
    here = pathlib.Path(app.srcdir)
    folder = here / "notebooks"
    folder.mkdir(exist_ok=True)
    for path in sorted((here.parent / "experiments" / "notebooks").glob("*.ipynb")):
        parts = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(source)
                continue
            parts.append(_fenced("python", re.sub(r"^%.*\n", "", source, flags=re.MULTILINE)))
            for place, output in enumerate(cell["outputs"]):
                data = output.get("data", {"text/plain": output.get("text", [])})
                if "image/png" in data:
                    picture = folder / f"{path.stem}_{cell['id']}_{place}.png"
                    picture.write_bytes(base64.b64decode(data["image/png"]))
                    parts.append(f"![what the cell above draws]({picture.name})")
                elif "text/html" in data:
                    parts.append(_fenced("{raw} html", "".join(data["text/html"])))
                else:
                    parts.append(_fenced("text", "".join(data["text/plain"])))
        page = "\n\n".join(parts)
        (folder / f"{path.stem}.md").write_text(f"{page}\n", encoding="utf-8")


def _fenced(kind: str, text: str) -> str:
    """A block of Markdown, with a fence that the text does not hold."""
    return f"````{kind}\n{text.rstrip()}\n````"


def setup(app: Sphinx) -> None:
    """Registers what stands above."""
    app.add_html_math_renderer("mathml", (show_formula, None), (show_formula, None))
    app.connect("builder-inited", write_notebooks)
    app.connect("autodoc-process-docstring", keep_form)
    app.connect("autodoc-process-signature", plain_defaults)
