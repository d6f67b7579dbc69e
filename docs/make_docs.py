"""The site in _docs/, from the notebooks: `make docs`.

The notebooks' text becomes pages (what is exported: signatures, arguments, folded code), nbdev adds front matter and
links, smalldocs makes the site of them without Quarto; with `--quarto`, Quarto makes it of the same pages. No notebook
is run and no torch is loaded. Nothing in a page comes from another host: formulas become MathML, and fonts are those of
the reader's machine."""
import ast, functools, html, itertools, json, re, shutil, subprocess, sys, tempfile, textwrap
from pathlib import Path

import yaml
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))      # nbdev looks up what is defined where in this checkout's vitnb/_modidx.py
# the groups of the sidebar: title, and notebooks by path without number; `*` stands for those not named
GROUPS = [('Start', ['index', 'results', 'cli']),
          ('Tutorials', ['tutorials/' + n for n in 'quickstart own_images reading_a_run choosing_a_method adding_a_paper scaling *'.split()]),
          *((room.capitalize(), [f'{room}/*']) for room in 'methods experiments data models training analysis widgets'.split()), ('Base', ['*'])]
DIRECTIVE = re.compile(r'^\s*#\s*\|\s*(\w+)', re.M)
MATHS = re.compile(r'(?P<open><span class="math (?P<kind>inline|display)">)\\[(\[](?P<tex>.*?)\\[)\]]</span>', re.S)
OUTPUT = re.compile(r'<div class="cell-output[^>]*>\s*<pre(?=><code>(?P<text>[^<]*)<)')
OTHER_FONTS = re.compile(r'@import url\((["\']?)https?://[^)]*\)[^;{}]*;?')
OTHER_SCRIPTS = re.compile(r'<(?:link|script)\b[^>]*(?:src|href)="https://cdn\.[^>]*>(?:</script>)?\s*')


# What an exported cell becomes ---------------------------------------------------------------------------------------

def markdown(text): return dict(cell_type='markdown', metadata={}, source=text)
def code(text, like): return {**like, 'outputs': [], 'source': text}


def header(node, source):
    "From `def` to the colon, with the comments of the arguments"
    lines, first = source.splitlines(), node.body[0]
    if node.lineno == first.lineno: return lines[node.lineno - 1].encode()[:first.col_offset].decode().strip()
    return textwrap.dedent('\n'.join(lines[node.lineno - 1:first.lineno - 1])).rstrip()


def meaning(field, after, source):
    "What is said of a field: the string below it, or the comment behind it"
    if isinstance(after, ast.Expr) and isinstance(getattr(after.value, 'value', None), str): return ' '.join(after.value.value.split())
    return source.splitlines()[field.end_lineno - 1].encode()[field.end_col_offset:].decode().strip().removeprefix('#').strip()


@functools.cache
def classes():
    "The exported classes by name, each with the source it stands in"
    cells = (c for p in sources(ROOT/'nbs') if p.suffix == '.ipynb' for c in json.loads(p.read_text('utf-8'))['cells'] if c['cell_type'] == 'code')
    exported = [without_directives(text) for c in cells if {'export', 'exports', 'exporti'} & set(DIRECTIVE.findall(text := ''.join(c['source'])))]
    return {n.name: (n, source) for source in exported for n in ast.parse(source).body if isinstance(n, ast.ClassDef)}


def above(node):
    "The classes of this project that a class is made from, the nearest first, each with its source"
    known = [classes()[b.id] for b in node.bases if isinstance(b, ast.Name) and b.id in classes()]
    return {n.name: (n, source) for near in known for n, source in [near, *above(near[0]).values()]}


def own(node, source):
    "Public fields that a class itself states: name, to what it is and means"
    pairs = zip(node.body, [*node.body[1:], None])
    return {f.target.id: (f, meaning(f, after, source)) for f, after in pairs
            if isinstance(f, ast.AnnAssign) and 'ClassVar' not in ast.unparse(f.annotation) and not f.target.id.startswith('_')}


def fields(node, source):
    "The fields of a dataclass as a table; what is not said of one is said where it comes from, or by its type"
    said = {name: words for n, s in reversed(above(node).values()) for name, (_, words) in own(n, s).items() if words}
    def of_type(f): return ast.get_docstring(classes()[f.annotation.id][0]) if getattr(f.annotation, 'id', '') in classes() else ''
    # <code>: nbdev would make a link of a name in backticks, to whatever else has that name
    rows = [[f'<code>{name}</code>', f'`{ast.unparse(f.annotation)}`', f'`{ast.unparse(f.value)}`' if f.value else '',
             words or said.get(name) or (of_type(f) or '').split('\n')[0]] for name, (f, words) in own(node, source).items()]
    table = [['field', 'type', 'default', 'meaning'], ['---'] * 4, *rows]
    lines = ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in table]
    return '\n'.join(['::: {.fields}', *lines, ':::']) if rows else ''


def inherited(node, source):
    "The fields that come from other classes, and from which"
    seen, lines = set(own(node, source)), []
    for name, (n, s) in above(node).items():
        new = [f'<code>{f}</code>' for f in own(n, s) if f not in seen]
        seen |= set(own(n, s))
        if new: lines.append(f'- of `{name}`: {", ".join(new)}')
    return '\n'.join([f'{"And the" if own(node, source) else "The"} settings that it shares with others:\n', *lines]) if lines else ''


def docstring(node):
    "What is said of a name, its arguments as a list"
    return re.sub(r'^(?:Args:\n)?    (\w+): ', r'- <code>\1</code>: ', ast.get_docstring(node) or '', flags=re.M)


def described(node, source):
    "A public name: heading, signature, docstring; of a class its fields, how one is made, and its public methods"
    def function(n): return [f'```python\n{header(n, source)}\n```', docstring(n)]
    if isinstance(node, ast.FunctionDef): parts = function(node)
    else:
        methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and (not m.name.startswith('_') or m.name == '__init__')]
        parts = [docstring(node), fields(node, source), inherited(node, source), *(part for m in methods for part in function(m))]
    return '\n\n'.join([f'### {node.name} {{.reference}}', *filter(None, parts)])


def without_directives(text): return ''.join(line for line in text.splitlines(True) if not DIRECTIVE.match(line)).strip()


def reference(cell):
    "The cells in place of an exported one: each public name, and the code, folded"
    source = without_directives(''.join(cell['source']))
    tree = ast.parse(source).body
    if all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree): return []
    stored = [n.id for s in tree if isinstance(s, (ast.Assign, ast.AnnAssign)) for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    names = ', '.join([n.name for n in tree if hasattr(n, 'name')] or stored)
    public = [n for n in tree if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]
    return [markdown(described(n, source)) for n in public] + [code(f'#| code-fold: true\n#| code-summary: "Code: {names or "what happens on import"}"\n{source}', cell)]


def joined(outputs):
    "Outputs, where what a cell prints line by line is one"
    for name, group in itertools.groupby(outputs, lambda o: o.get('name') or id(o)):
        first, *more = group
        yield {**first, 'text': ''.join(''.join(o['text']) for o in (first, *more))} if first['output_type'] == 'stream' else first


# Pages ---------------------------------------------------------------------------------------------------------------

def prepared(cells):
    "A notebook's cells as a page's"
    for cell in cells:
        text = ''.join(cell['source'])
        directives = set(DIRECTIVE.findall(text)) if cell['cell_type'] == 'code' else set()
        if directives & {'export', 'exports', 'exporti'}: yield from reference(cell)
        elif directives & {'default_exp', 'hide'}: continue
        elif title := re.match(r'# .+\n+> .+\n\s*(?=\S)', text):      # nbdev keeps nothing else of the cell that holds the title
            yield markdown(title[0].strip())
            yield markdown(without_numbers(text[title.end():]))
        elif cell['cell_type'] == 'markdown': yield markdown(without_numbers(text))
        else: yield {**cell, 'outputs': list(joined(cell.get('outputs', [])))} if cell['cell_type'] == 'code' else cell


def without_number(name): return re.sub(r'^\d+[a-z]?_', '', name)
def without_numbers(text): return re.sub(r'(\]\((?!\w+:)[^)\s]*?)\b\d+[a-z]?_(\w+\.ipynb)', r'\1\2', text)


def sources(folder):
    "The files that pages are made of; not runs, nor what editors leave"
    return [p for p in folder.rglob('*') if p.is_file() and not any(part == 'runs' or part.startswith('.') for part in p.relative_to(folder).parts)]


def pages(notebooks, to):
    "The notebooks as pages, under the names that nbdev's links have: sets.ipynb for 10_sets.ipynb"
    for path in sources(notebooks):
        target = to/path.relative_to(notebooks).with_name(without_number(path.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != '.ipynb': shutil.copy2(path, target); continue
        nb = json.loads(path.read_text('utf-8'))
        target.write_text(json.dumps({**nb, 'cells': list(prepared(nb['cells']))}), encoding='utf-8')
    groups = sidebar([str(p.relative_to(notebooks)) for p in sources(notebooks) if p.suffix == '.ipynb'])
    (to/'sidebar.yml').write_text(yaml.safe_dump(dict(website=dict(sidebar={'style': 'floating', 'collapse-level': 1, 'contents': groups})), sort_keys=False))


def sidebar(notebooks):
    "Groups of pages in the order of the notebooks' numbers; every notebook has one place"
    left, groups = sorted(notebooks), []
    named = {n: str(Path(n).with_name(without_number(Path(n).name))) for n in left}
    for title, patterns in GROUPS:
        found = list(dict.fromkeys(n for p in patterns for n in left if Path(named[n]).match(f'{p}.ipynb') and ('/' in n) == ('/' in p)))
        left = [n for n in left if n not in found]
        if found: groups.append(dict(section=title, contents=[dict(text='Home', href=n) if n == 'index.ipynb' else named[n] for n in found]))
    assert not left, f'in no group of the sidebar: {left}'
    return groups


# The site ------------------------------------------------------------------------------------------------------------

def mathml(found):
    "A formula as the browser's own maths"
    from latex2mathml.converter import convert
    return found['open'] + convert(html.unescape(found['tex']), 'block' if found['kind'] == 'display' else 'inline') + '</span>'


def without_formulas(site):
    "Take the source of formulas out of what the search shows"
    found = {str(page.relative_to(site)): [' '.join(html.unescape(m['tex']).split()) for m in MATHS.finditer(page.read_text('utf-8')) if '\\' in m['tex']] for page in site.rglob('*.html')}
    entries = json.loads((site/'search.json').read_text('utf-8'))
    for entry in entries:
        for tex in sorted(found[entry['href'].split('#')[0]], key=len, reverse=True): entry['text'] = entry['text'].replace(tex, '…')
    (site/'search.json').write_text(json.dumps(entries, ensure_ascii=False), encoding='utf-8')


def in_columns(found): return found[0] + (' class="columns"' if re.search(r'\S {2,}\S', found['text']) else '')


def standing_alone(site):
    "Take out of pages and styles whatever another host would have to send; mark output whose columns must stay below each other"
    for page in site.rglob('*.html'):
        text = OUTPUT.sub(in_columns, OTHER_SCRIPTS.sub('', MATHS.sub(mathml, page.read_text('utf-8'))))
        page.write_text(re.sub(r'(\d) ± (\d)', '\\1\u00a0±\u00a0\\2', text), encoding='utf-8')      # such a number stays in one line
    for style in site.rglob('*.css'): style.write_text(OTHER_FONTS.sub('', style.read_text('utf-8')), encoding='utf-8')


def links_within(folder):
    "nbdev's links lead to the published site: make them lead from page to page"
    home = '{doc_host}{doc_baseurl}/'.format(**get_config().d)
    for path in folder.rglob('*.ipynb'):
        up = '../' * (len(path.relative_to(folder).parts) - 1)
        path.write_text(re.sub(re.escape(f']({home}') + r'([\w/]+)\.html', rf']({up}\1.ipynb', path.read_text('utf-8')), encoding='utf-8')


def render(folder):
    "The site that smalldocs makes, and its complaints: broken links, settings it does not know"
    try: from smalldocs.site import build
    except ModuleNotFoundError as e: sys.exit(f'{e}: the site needs smalldocs, and that Python 3.11 or newer (here: {sys.version.split()[0]}), or Quarto: make docs QUARTO=1')
    for path in folder.rglob('*.ipynb'):          # `output-file` is for Quarto
        path.write_text(re.sub(r'output-file: [^\\"]*\\n', '', path.read_text('utf-8')), encoding='utf-8')
    complaints = build(folder, quiet=True).warnings
    without_formulas(folder/'_docs')
    standing_alone(folder/'_docs')
    return complaints


def main(quarto=False):
    get_config(); refresh_quarto_yml(); _build_modidx()
    shutil.rmtree(ROOT/'_proc', ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        pages(ROOT/'nbs', Path(folder))
        made, complaints = proc_nbs(folder, n_workers=0, force=True), []
    links_within(made)
    if quarto: subprocess.run(['quarto', 'render', '--no-cache'], cwd=made, check=True)
    else: complaints = render(made)
    shutil.rmtree(ROOT/'_docs', ignore_errors=True)
    shutil.move(made/'_docs', ROOT/'_docs')
    print('\n'.join([*complaints, f'_docs/index.html: {len(list((ROOT/"_docs").rglob("*.html")))} pages, {len(complaints)} complaints']))
    return bool(complaints)


if __name__ == '__main__': sys.exit(main('--quarto' in sys.argv))
