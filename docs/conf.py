"""The documentation's settings: ``make docs`` builds ``docs/_build/html``; every warning is an error."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_extensions")]

project = "bgrpo"
author = "the authors of bgrpo"
release = version = installed_version("bgrpo")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "repository_pages"]
exclude_patterns = ["_build", "_extensions", "_templates"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes = False  # options begin with --

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

# Other libraries' objects: their own documentation has them, and nothing is fetched over the network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|transformers|numpy|np|pydantic|collections|pathlib|typing|Path|enum|tokenizers)(\..*)?"),
    (r"py:.*", r"(PreTrainedModel|PreTrainedTokenizerBase|PreTrainedConfig|PretrainedConfig|GPT2LMHeadModel)"),
    (r"py:.*", r"bgrpo\.(config\.loading\.C|evaluation\.intervals\.Name)"),  # type variables
    (
        r"py:.*",
        r"(Precision|dict\[str|tuple\[str|Message|Scores|Rewards|Keys|Problems|PolicyLike|Prompt|SampledGroup)",
    ),
    (r"py:.*", r"((os\.)?PathLike|AllowedLike|EngineName|Search|RolloutSection)"),
    (r"py:.*", r"(Any|Sequence|Mapping|Callable|Iterable|Literal|Protocol|Self|StrEnum|NamedTuple|optional)"),
]

html_theme = "pydata_sphinx_theme"
html_title = "bgrpo"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]
templates_path = ["_templates"]
html_sidebars = {"**": ["contents.html"]}
html_theme_options = {
    "logo": {"text": "bgrpo"},
    "show_toc_level": 2,
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "footer_end": [],
}
