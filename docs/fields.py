"""For the reference of the site (mkdocs.yml): what a comment `#: …` says of a field is its docstring."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Docstring, Extension


class Fields(Extension):
    """Reads the comments beside fields that have no docstring."""

    def on_attribute_instance(self, *, attr: Attribute, agent: Any, **kwargs: Any) -> None:
        lines = getattr(agent, "code", "").splitlines()[(attr.lineno or 1) - 1 : attr.endlineno]
        said = [found[1] for line in lines if (found := re.search(r"#: (.+)", line))]
        if attr.docstring is None and said:
            attr.docstring = Docstring(" ".join(said), parent=attr)
