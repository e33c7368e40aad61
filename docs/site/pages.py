"""Hook of mkdocs: the pages that are made from other files, the navigation, and links between all of them."""

from __future__ import annotations

import ast
import json
import os
import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
#: Files of the repository that are pages of the site.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "benchmarks/README.md": "benchmarks.md"}
#: Modules that are for the command line, whose help says what they do.
COMMANDS = ("selfsup.cli", "selfsup.commands")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made here, and all that the navigation does not name."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    notebooks = {f"notebooks/{path.stem}.md": notebook(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    modules = [name for name in map(module_name, sorted((ROOT / "selfsup").rglob("*.py"))) if is_public(name)]
    api = {f"api/{name}.md": f"# {name} {{#{name}}}\n\n::: {name}\n" for name in modules}
    made = {**notebooks, **api, "commands.md": commands()}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))

    nav: list[Any] = list(config.nav or [])
    named = {page for section in nav for pages in section.values() for page in names(pages)} | set(made)
    rest = [file.src_uri for file in files.documentation_pages() if file.src_uri not in named | {"index.md"}]
    methods = [page for page in rest if page.startswith("methods")]
    config.nav = [
        {"Home": "index.md"},
        *nav[:2],
        {"Methods": sorted(methods)},
        *nav[2:],
        {"Notebooks": list(notebooks)},
        {"Extend": [page for page in rest if page not in methods]},
        {"API": ["commands.md", *({page[4:-3]: page} for page in api)]},
    ]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the repository to their pages; what has no page is named without a link."""
    own = page.file.src_uri
    home = next((source for source, made in PAGES.items() if made == own), f"docs/{own}")
    if own.startswith("notebooks/"):
        home = own

    def lead(link: re.Match[str]) -> str:
        text, target, anchor = link.groups(default="")
        path = os.path.normpath(os.path.join(os.path.dirname(home), target))
        if re.match(r"\w+:", target) or not (ROOT / path).exists():
            return link[0]
        made = site_page(path)
        if made is None or files.get_file_from_path(made) is None:
            return text
        return f"[{text}]({os.path.relpath(made, os.path.dirname(own) or '.')}{anchor})"

    return re.sub(r"\[([^\[\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)", lead, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw by themselves."""

    def draw(formula: re.Match[str]) -> str:
        return convert(unescape(formula[2]).strip(), display="block" if formula[1] == "div" else "inline")

    return re.sub(r'<(div|span) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', draw, html, flags=re.DOTALL)


def site_page(path: str) -> str | None:
    """Return the page of the site that shows a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("notebooks/"):
        return str(Path(path).with_suffix(".md"))
    return f"api/{module_name(ROOT / path)}.md" if path.startswith("selfsup/") and path.endswith(".py") else None


def names(pages: Any) -> list[str]:
    """Return the pages that a part of the navigation names."""
    return [pages] if isinstance(pages, str) else [name for part in pages for name in names(values(part))]


def values(part: Any) -> Any:
    """Return the page or pages of an entry that has a title."""
    return next(iter(part.values())) if isinstance(part, dict) else part


def module_name(path: Path) -> str:
    """Return the name that a file of the package is imported by."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_public(name: str) -> bool:
    """Whether a module has a page: neither private, nor of the command line, nor a folder without a word."""
    private = any(part.startswith("_") for part in name.split("."))
    return not private and not name.startswith(COMMANDS) and ast.get_docstring(tree(name)) is not None


def tree(name: str) -> ast.Module:
    """Return the syntax tree of a module."""
    path = ROOT / name.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))


def commands() -> str:
    """Return the page of all commands: what each says about itself."""
    parts = ["# Commands\n\nWhat each `--help` begins with; the options and settings come after it."]
    for path in sorted((ROOT / "selfsup" / "commands").glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        parts.append(f"## selfsup {path.stem}\n\n```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def notebook(path: Path) -> str:
    """Return a notebook as a page, with its stored outputs."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        parts += [shown for output in cell["outputs"] if (shown := output_text(output))]
    return "\n\n".join(parts) + "\n"


def output_text(output: dict[str, Any]) -> str:
    """Return what a cell shows, in Markdown."""
    data = output.get("data", {})
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f"![](data:{kind};base64,{''.join(data[kind]).strip()})"
    if "text/html" in data:
        return "".join(data["text/html"])
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(output.get("text") or data.get("text/plain", "")).rstrip()
    return f"```text\n{text}\n```" if text else ""
