"""Types for pages in TypeScript: generated from the sources, and strict where a page is wrong."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.client.package import FOLDER, ROOT, SOURCE, built, installed, run, tool

pytestmark = pytest.mark.extended

STRICT = {
    "strict": True,
    "exactOptionalPropertyTypes": True,
    "noUncheckedIndexedAccess": True,
    "noEmit": True,
    "target": "es2022",
    "lib": ["es2023", "dom", "dom.iterable"],
    "types": [],
}
PLACES = {"bundler": {"module": "esnext", "moduleResolution": "bundler"}, "node": {"module": "nodenext"}}
"""How an application may look for packages."""

COMPILERS = {"5": ("typescript/bin/tsc", SOURCE), "7": ("typescript-7/bin/tsc", FOLDER)}
"""The one that writes the declarations, and the newest."""


def test_the_declarations_are_those_of_the_sources(tmp_path: Path) -> None:
    """Editors and compilers of pages describe another version than the one that runs."""
    built("types", tmp_path)
    written = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert set(written) == {file.name for file in SOURCE.glob("*.d.ts")}
    for name, text in written.items():
        assert (SOURCE / name).read_text() == text, f"{name}: run `make types`"


@pytest.mark.parametrize("compiler", COMPILERS)
def test_pages_compile_and_wrong_ones_do_not(compiler: str, tmp_path: Path) -> None:
    """Typed channels, templates, the hook, and the lines of the package's README, as an application has them."""
    folder = installed(tmp_path)
    pages = [folder / name for name in ("channels.ts", "hook.ts", "readme.ts", "readme_types.ts")]
    for page in pages[:2]:
        shutil.copy(FOLDER / "pages" / page.name, page)
    lines, typed = (
        re.findall(rf"```{kind}\n(.*?)```", (SOURCE / "README.md").read_text(), re.DOTALL)[0]
        for kind in ("js", "ts")
    )
    declared = "declare const render: (payload: {number: number}) => void, getToken: () => Promise<string>;\n"
    pages[2].write_text(declared + "declare const refetch: (channel: string) => void;\n" + lines)
    own = "type Order = {number: number}; type Message = {text: string};\ndeclare const greet: (text: string) => void;\n"
    pages[3].write_text(declared + own + typed)
    (folder / "package.json").write_text('{"type": "module"}')
    for place, options in PLACES.items():
        (folder / "tsconfig.json").write_text(
            json.dumps({"compilerOptions": {**STRICT, **options}, "files": [page.name for page in pages]})
        )
        done = run(tool(*COMPILERS[compiler]), "--project", folder, folder=folder)
        assert done.returncode == 0, f"{place}:\n{done.stdout}"


def test_make_writes_the_types() -> None:
    """The recipe that the test above names."""
    assert re.search(r"^types:", (ROOT / "Makefile").read_text(), re.MULTILINE)
