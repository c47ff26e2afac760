"""Writes the client's types: ``make types``. A test holds the committed ones against them."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.client.package import MODULES, SOURCE, run, tool

WRITTEN = {"client.d.ts": "types.js", "react.d.ts": "hook.js"}
"""With the file whose types a page may name from the same place. JSDoc cannot hand on all of a file's."""


def written(folder: Path) -> dict[str, str]:
    """Return the types that the compiler makes of the JSDoc, by file. ``folder`` is empty.

    They are made of a copy: types that are there would be taken for those of the text.
    """
    compiler = tool("typescript/bin/tsc")
    source = folder / "client"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns(*WRITTEN, "node_modules"))
    # It finds npm's modules as it does in the repository.
    (folder / "tests/client").mkdir(parents=True)
    (folder / "tests/client/node_modules").symlink_to(MODULES)
    done = run(compiler, "--project", source, folder=folder)
    if done.returncode:
        raise AssertionError(done.stdout)
    return {
        name: f'{(source / name).read_text()}export * from "./{also}";\n' for name, also in WRITTEN.items()
    }


if __name__ == "__main__":
    with TemporaryDirectory() as empty:
        for name, text in written(Path(empty)).items():
            (SOURCE / name).write_text(text)
