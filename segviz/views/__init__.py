"""One view, one place: its Python, script and style side by side."""
