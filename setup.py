"""Everything about the package stands in pyproject.toml; here only: the wheel carries the files that the demo needs."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithFiles(build_py):
    """A build with settings and embedded policy inside the package, where `segpo_core.shipped` looks for them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable install finds them in the checkout
            for name in ("configs", "data", "benchmarks/credit"):
                shutil.copytree(name, Path(self.build_lib, "segpo_core", "files", name), dirs_exist_ok=True)


setup(cmdclass={"build_py": WithFiles})
