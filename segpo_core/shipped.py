"""Where the files are that the project ships beside its code: the demo's settings and the embedded policy."""

from pathlib import Path

#: The toolkit's own checkout.
ROOT = Path(__file__).resolve().parent.parent
