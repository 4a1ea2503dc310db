"""A hook of MkDocs: adds to docs/ the pages that stand elsewhere, and one page of the API reference for each package.

The front page is README.md, the page of a package is its README.md. Links between files of the repository become links
between pages; a link to a file that is no page becomes plain text. Imports none of our code.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data", "actors", "jobs", "serve", "cluster")
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""File of the repository -> page of the site."""
_LINK = re.compile(
    r'(?P<before>(?<!!)\[[^\]]*\]\(|!\[[^\]]*\]\(|<img src=")(?P<target>[^)#:"\s]+)(?P<anchor>#[^)"]*)?(?P<after>[)"])'
)
_MARK = re.compile(r"^<!-- [^>]* -->\n", re.MULTILINE)
"""What tests/test_docs.py does with a block; nothing for readers."""


def folders() -> list[Path]:
    """Every package with Python files, the packages inside it after it."""
    found = [ROOT / name for name in PACKAGES]
    found = [inner for folder in found for inner in (folder, *sorted(p for p in folder.rglob("*") if p.is_dir()))]
    return [folder for folder in found if modules(folder)]


def modules(folder: Path) -> list[Path]:
    """The files of one package that others import by their names."""
    return sorted(path for path in folder.glob("*.py") if not path.stem.startswith("__"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def pages() -> dict[str, str]:
    """File of the repository -> page of the site, of every page that is not in docs/."""
    readmes = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("README.md"))]
    return PAGES | {path.relative_to(ROOT).as_posix(): f"packages/{dotted(path.parent)}.md" for path in readmes}


def reference(folder: Path) -> str:
    """The reference of one package: its modules, one after the other."""
    return "\n\n".join([f"# {dotted(folder)}", *(f"::: {dotted(path)}" for path in modules(folder))]) + "\n"


def relinked(text: str, source: str, page: str) -> str:
    """The text of the repository's file `source` as the text of `page`."""
    known = pages()

    def replaced(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found["target"]))
        if target in known:
            target = known[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return found["before"].lstrip("![").removesuffix("](")
        link = posixpath.relpath(target, posixpath.dirname(page) or ".")
        return f"{found['before']}{link}{found['anchor'] or ''}{found['after']}"

    return _MARK.sub("", _LINK.sub(replaced, text))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The packages and the reference close the navigation."""
    assert config.nav is not None, "mkdocs.yml has a nav"
    names = [dotted(folder) for folder in folders()]
    readmes = [page for page in pages().values() if page.startswith("packages/")]
    config.nav.append({"Packages": [{Path(page).stem: page} for page in readmes]})
    config.nav.append({"API reference": [{name: f"reference/{name}.md"} for name in names]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in pages().items():
        files.append(
            File.generated(config, page, content=relinked((ROOT / source).read_text(encoding="utf-8"), source, page))
        )
    for folder in folders():
        files.append(File.generated(config, f"reference/{dotted(folder)}.md", content=reference(folder)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Only what lies in docs/; the others were relinked as they were added."""
    return markdown if page.file.generated_by else relinked(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
