"README.md from nbs/index.ipynb: `make readme` writes it, a test checks that it is up to date"
import os, re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
DIRECTIVE = re.compile(r'^\s*#\s*\|.*\n?', re.M)
HIDDEN = re.compile(r'^\s*#\s*\|\s*hide\s*$', re.M)
LINK = re.compile(r'(\]\(|src="|href=")(?![a-z][a-z0-9+.-]*:|[/#])([^)"\s]+)')


def from_root(markdown, folder='nbs'):
    "Relative links of a page in `folder`, as they are from the repository's root"
    return LINK.sub(lambda m: m[1] + os.path.normpath(f'{folder}/{m[2]}'), markdown)


def readme(notebook=ROOT/'nbs/index.ipynb'):
    "The text of README.md: the notebook without hidden cells and directives"
    nb = nbformat.read(notebook, as_version=4)
    nb.metadata.language_info = dict(name='python')  # nbdev_clean drops it, code blocks are coloured by it
    nb.cells = [c for c in nb.cells if c.cell_type != 'raw' and not HIDDEN.search(c.source)]
    for c in nb.cells:
        c.source = DIRECTIVE.sub('', c.source) if c.cell_type == 'code' else from_root(c.source)
    text, resources = MarkdownExporter().from_notebook_node(nb)
    if resources['outputs']: sys.exit('index.ipynb: keep pictures in nbs/images, not in outputs')
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__':
    (ROOT/'README.md').write_text(readme(), encoding='utf-8')
