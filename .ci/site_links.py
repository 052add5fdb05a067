"""A MkDocs hook: links from docs/ to files of the repository that are outside docs/.

The project has no public URL, so such a link cannot become a web address. A link to an image
copies the image into the site. Any other link becomes its text, followed by the path in the
repository. Where `repo_url` is set in mkdocs.yml the link points into the repository instead. A
target that does not exist is a warning, and therefore an error under `--strict`.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)\s#]*)(#[^)\s]*)?\)")
IMAGES = (".png", ".svg", ".jpg", ".gif")
log = logging.getLogger("mkdocs.hooks.site_links")


def on_files(files, config):
    """Add every image outside docs/ that a page shows."""
    root = Path(config.config_file_path).parent
    for page in list(files.documentation_pages()):
        for _, _, target, _ in LINK.findall(page.content_string):
            path = _in_repository(page.src_uri, target)
            if (
                path.endswith(IMAGES)
                and (root / path).is_file()
                and files.get_file_from_path(path) is None
            ):
                files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Return the page with its links to files outside docs/ rewritten."""
    root = Path(config.config_file_path).parent

    def rewritten(match):
        mark, text, target, anchor = match.groups()
        path = _in_repository(page.file.src_uri, target)
        if not (root / path).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, target)
        if path.endswith(IMAGES):
            here = posixpath.dirname(page.file.src_uri) or "."
            return f"{mark}[{text}]({posixpath.relpath(path, here)})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor or ''})"
        return text if path in text else f"{text} (`{path}`)"

    return LINK.sub(rewritten, markdown)


def _in_repository(page, target):
    """Return the path in the repository of a link on a page of docs/."""
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
