"The site: made from a copy of the repository, complete, with links that lead somewhere, and nothing from another host"
import functools, http.server, sys, threading
from pathlib import Path

import pytest

from conftest import ROOT, call, copy_repo

pytest.importorskip('smalldocs', reason='smalldocs needs Python 3.11 or newer')
PAGES = ['index', 'tutorials/quickstart', 'methods/deit_lt', 'data/sets', 'experiments/deit_lt_fashion', 'results']


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site's folder"
    folder = copy_repo(tmp_path_factory.mktemp('docs')/'a copy')
    said = call(sys.executable, '-W', 'ignore', folder/'docs/make_docs.py', cwd=folder)   # a broken link is an error
    print(said.splitlines()[-1])
    return folder/'_docs'


def test_every_notebook_has_its_page(site):
    pages = {str(p.relative_to(site).with_suffix('')) for p in site.rglob('*.html')}
    sys.path.insert(0, str(ROOT/'docs'))
    from make_docs import sources, without_number
    assert {str(n.relative_to(ROOT/'nbs').with_name(without_number(n.stem))) for n in sources(ROOT/'nbs') if n.suffix == '.ipynb'} <= pages


def test_a_page_explains_and_refers(site):
    text = (site/'methods/deit_lt.html').read_text('utf-8')
    for wanted in ('two experts', '<math', 'id="deitlt"', 'share of the epochs before DIST', '<summary>Code: deit_lt_mixing', 'goes to the teacher as it is'): assert wanted in text, wanted
    assert 'href="../core.html#usererror"' in (site/'training/states.html').read_text('utf-8')
    assert 'katex' not in text.lower() and '\\frac' not in text


def test_settings_and_output_are_whole(site):
    import re
    methods, shown = [(site/f'methods/{name}.html').read_text('utf-8') for name in ('deit_lt', 'paco')], (site/'tutorials/quickstart.html').read_text('utf-8')
    # what a method inherits, and from where; a default of its own keeps the meaning
    assert re.search(r'<li>of <a href="[^"]*training/loop.html#trainconfig"><code>TrainConfig</code></a>:.*<code>epochs</code>', methods[0])
    assert re.search(r'<code>epochs</code></td>\s*<td><code>int</code></td>\s*<td><code>60</code></td>\s*<td>passes over the training images', methods[1])
    assert '<code>train</code></td>' in (site/'data/sets.html').read_text('utf-8')     # the field, no link to the function
    # forty epochs in one block, whose columns stay below each other
    assert re.search(r'<pre class="columns"><code>[^<]*\n    1 [^<]*\n   40 ', shown)
    # how an object is made, where its class is no dataclass
    assert 'whose answer: ' in (site/'analysis/flatness.html').read_text('utf-8').split('id="landscape" class')[1].split('<details')[0]
    index = (site/'search.json').read_text('utf-8')
    assert 'Logit adjustment' in index and '\\propto' not in index


CUT = "[...document.querySelectorAll('main pre:not(.columns)')].filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 2).map(e => e.textContent)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_pages_in_a_browser(site, browser, shots, scheme, width):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, context = f'http://127.0.0.1:{server.server_port}/', browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme)
    try:
        for name in PAGES:
            page, wrong = context.new_page(), []
            page.on('console', lambda m: wrong.append(m.text) if m.type == 'error' else None)
            page.on('pageerror', lambda e: wrong.append(str(e)))
            page.on('request', lambda r: None if r.url.startswith((host, 'data:')) else wrong.append(r.url))
            page.goto(f'{host}{name}.html', wait_until='networkidle')
            page.screenshot(path=shots/f'docs-{name.replace("/", "-")}-{scheme}-{width}.png')
            assert not wrong, (name, wrong)
            assert page.evaluate('document.documentElement.scrollWidth') <= width, f'{name} is wider than {width}'
            assert not page.evaluate(CUT), f'{name}: code is cut at {width}'
            light = page.evaluate('getComputedStyle(document.body).backgroundColor') == 'rgb(255, 255, 255)'
            assert light == (scheme == 'light')
            page.close()
    finally: context.close(); server.shutdown()


def test_search_finds_a_function(site, browser):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    try:
        page.goto(f'http://127.0.0.1:{server.server_port}/index.html', wait_until='networkidle')
        page.locator('input[type=search], .navbar input').first.press_sequentially('deit_lt_mixing')
        page.locator('a[href*="deit_lt.html"]:visible').first.wait_for()
        colours = [page.locator(s).first.evaluate('e => getComputedStyle(e).color') for s in ('.search-result-text', '.search-result-title')]
        assert colours[0] == colours[1], 'the text of a result has not the colour of its panel'
    finally: page.close(); server.shutdown()


def test_a_slider_moves_pictures_without_a_kernel(site, browser):
    page, wrong = browser.new_page(), []
    page.on('console', lambda m: wrong.append(m.text) if m.type in ('error', 'warning') else None)
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.on('request', lambda r: None if r.url.startswith(('file:', 'data:')) else wrong.append(r.url))
    try:
        page.goto((site/'data/longtail.html').as_uri(), wait_until='load')
        slider, picture = page.get_by_label('imbalance factor ρ', exact=True), page.locator('.animation img')
        before = picture.get_attribute('src')
        slider.press('ArrowRight')
        assert slider.input_value() == '1' and picture.get_attribute('src') != before and not wrong
        assert picture.evaluate('i => i.decode().then(() => i.naturalWidth)') > 200
    finally: page.close()
