"""A real JupyterLab for tests: its own folders, no news, no network; and a notebook in it, driven by a browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Page

REPOSITORY = Path(__file__).parents[2]
QUIET = (
    "--no-browser --allow-root --expose-app-in-browser --ServerApp.ip=127.0.0.1 --ServerApp.port=0 "
    "--LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate "
    "--LabApp.extension_manager=readonly --IdentityProvider.token=secret"
).split()
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}

_OPEN = """async (path) => {
  const app = window.jupyterapp;
  await app.restored;
  const widget = await app.commands.execute('docmanager:open', { path, factory: 'Notebook' });
  await widget.context.ready;
  await widget.sessionContext.ready;
  await widget.sessionContext.session.kernel.info;
}"""
_RUN = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({ code, store_history: false });
  let said = '', failed = '';
  future.onIOPub = ({ header, content }) => {
    if (header.msg_type === 'stream') said += content.text;
    if (header.msg_type === 'error') failed = content.traceback.join('\\n');
  };
  await future.done;
  if (failed) throw new Error(failed);
  return said;
}"""


@contextmanager
def jupyter(folder: Path) -> Iterator[str]:
    """A JupyterLab whose root is `folder`; gives its address."""
    home = folder / ".jupyter"
    for name, content in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    runtime = home / "runtime"
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": str(REPOSITORY),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    with open(folder / "jupyter.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *QUIET, f"--ServerApp.root_dir={folder}"],
            env=environment, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
    try:
        until = time.monotonic() + 90
        while not (found := list(runtime.glob("jpserver-*.json"))):
            said = (folder / "jupyter.log").read_text(errors="replace")
            assert process.poll() is None, f"JupyterLab ended:\n{said}"
            assert time.monotonic() < until, f"JupyterLab did not start:\n{said}"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{json.loads(found[0].read_text())['port']}"
    finally:
        process.terminate()  # ends its kernels, too
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Notebook:
    """A notebook open in JupyterLab."""

    def __init__(self, browser: Browser, address: str, folder: Path, cells: Sequence[str], width: int = 1280,
                 height: int = 900):  # fmt: skip
        (folder / "test.ipynb").write_text(
            nbformat.writes(
                nbformat.v4.new_notebook(
                    cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
                    metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
                )
            )
        )
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
        self.page: Page = context.new_page()
        self.page.set_default_timeout(40_000)
        self.elsewhere: list[str] = []  # addresses asked for beyond this machine
        self.page.on("request", lambda r: None if _is_here(r.url, address) else self.elsewhere.append(r.url))
        self.page.goto(f"{address}/lab?token=secret&reset")
        self.page.wait_for_function("() => window.jupyterapp !== undefined")
        self.page.evaluate(_OPEN, "test.ipynb")

    def command(self, name: str, **arguments: Any) -> None:
        """Run a command of JupyterLab and wait until it is done."""
        self.page.evaluate("([n, a]) => window.jupyterapp.commands.execute(n, a).then(() => null)", [name, arguments])

    def run_all(self) -> None:
        self.command("notebook:run-all-cells")

    def python(self, code: str) -> str:
        """Run code in the notebook's kernel; what it printed, without the last line's end. What it raises is raised."""
        return self.page.evaluate(_RUN, code).rstrip("\n")

    def cell(self, number: int):
        """The output of a code cell."""
        return self.page.locator(f".jp-Notebook .jp-CodeCell >> nth={number} >> .jp-OutputArea")


def _is_here(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:", address.replace("http", "ws", 1)))
