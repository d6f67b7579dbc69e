"In a real browser: a report from disk, and the quickstart notebook in JupyterLab"
import contextlib, json, os, secrets, socket, subprocess, time
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from conftest import BIN, ROOT, clean_env, copy_repo

pytestmark = pytest.mark.usefixtures('chromium')  # before anything that takes time
QUICKSTART = 'nbs/tutorials/quickstart.ipynb'
OFFLINE = ('file:', 'data:', 'blob:', 'about:')
# every picture is asked for, also those further down, and its width told
WIDTHS = '''() => Promise.all([...document.images].map(async i => {
    i.loading = 'eager'; await i.decode().catch(() => 0); return [i.alt || i.src.slice(0, 80), i.naturalWidth] }))'''


def missing_pictures(page):
    "Pictures that do not show, after asserting that there are pictures"
    widths = page.evaluate(WIDTHS)
    assert widths or page.locator('svg').count(), 'no picture at all'
    return [name for name, width in widths if not width]


@contextlib.contextmanager
def watched(browser, **options):
    "A page, and the list of what went wrong in it"
    page, wrong = browser.new_page(**options), []
    page.on('console', lambda m: wrong.append(f'console: {m.text}') if m.type == 'error' else None)
    page.on('pageerror', lambda e: wrong.append(f'page: {e}'))
    try: yield page, wrong
    finally: page.close()


def look_at(browser, report, scheme, shot):
    "Open a page from disk as a reader would; what is wrong with it"
    with watched(browser, viewport=dict(width=1280, height=900), color_scheme=scheme) as (page, wrong):
        page.on('request', lambda r: wrong.append(f'asks for {r.url}') if not r.url.startswith(OFFLINE) else None)
        page.on('requestfailed', lambda r: wrong.append(f'not found: {r.url[:200]}'))
        page.goto(report.as_uri(), wait_until='load')
        wrong += [f'no picture: {name}' for name in missing_pictures(page)]
        if page.evaluate('document.documentElement.scrollWidth > document.documentElement.clientWidth'): wrong.append('wider than the window')
        page.screenshot(path=shot, full_page=True)
        return wrong


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_report(browser, quick_report, shots, scheme):
    assert not look_at(browser, quick_report, scheme, shots/f'report-{scheme}.png')


def test_look_at_can_complain(browser, tmp_path):
    page = tmp_path/'bad.html'
    page.write_text('''<html><img src="gone.png" alt="gone"><div style="width: 3000px">wide</div>
        <script src="http://127.0.0.1:9/x.js"></script><script>console.error("oh"); throw Error("no")</script></html>''')
    wrong = '\n'.join(look_at(browser, page, 'light', tmp_path/'bad.png'))
    assert all(text in wrong for text in ('no picture: gone', 'asks for http://127.0.0.1:9/x.js', 'console: oh', 'page: no', 'wider than the window'))


# JupyterLab ---------------------------------------------------------------------------------------------------------

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


@contextlib.contextmanager
def jupyterlab(folder, settings, **env):
    "A JupyterLab of its own on `folder`, with no settings but ours; gives its address and token"
    for name, values in {'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False),
                         'notebook-extension/tracker': dict(windowingMode='none')}.items():  # all cells in the page, not only those in view
        path = settings/f'lab/@jupyterlab/{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    places = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_RUNTIME_DIR='runtime', JUPYTERLAB_SETTINGS_DIR='lab', JUPYTERLAB_WORKSPACES_DIR='workspaces')
    port, token = free_port(), secrets.token_hex(16)
    flags = ['--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}']
    with open(settings/'log', 'w') as log:
        server = subprocess.Popen([str(BIN/'jupyter-lab'), *flags], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                  env=clean_env(**{k: str(settings/v) for k, v in places.items()}, **env))
    try:
        wait(lambda: answers(f'http://127.0.0.1:{port}/api') or server.poll() is not None, 60)
        assert server.poll() is None, (settings/'log').read_text()[-3000:]
        yield f'http://127.0.0.1:{port}', token
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


def answers(url):
    try: return urlopen(url, timeout=5).status == 200
    except (URLError, OSError): return False


def wait(ready, seconds):
    "Wait until `ready()` is true"
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f'not ready after {seconds} s'
        time.sleep(.2)


def run_all(page, minutes):
    "Run All Cells, and wait for the last one"
    # asked earlier, it would open a dialog about the kernel and hang
    page.locator('#jp-main-statusbar').get_by_text('| Idle').wait_for(timeout=120_000)
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    page.locator('.jp-InputPrompt').filter(has_text='[1]:').first.wait_for(timeout=60_000*minutes)
    waiting = page.locator('.jp-InputPrompt').filter(has_text='[*]:')
    wait(lambda: waiting.count() == 0, 60*minutes)


def save(page, path):
    "Save the notebook, return what is in the file"
    before = path.stat().st_mtime_ns
    page.keyboard.press('Escape')
    page.keyboard.press('Control+s')
    wait(lambda: path.stat().st_mtime_ns > before, 30)
    return json.loads(path.read_text('utf-8'))


def run_in_lab(browser, folder, settings, name, shot, minutes=5, **env):
    "Run a notebook in JupyterLab; returns its outputs, the errors among them, and the pictures in the page that do not show"
    with jupyterlab(folder, settings, **env) as (url, token), watched(browser, viewport=dict(width=1280, height=1600)) as (page, _):
        page.goto(f'{url}/lab/tree/{name}?reset&token={token}')
        run_all(page, minutes)
        pictures = page.locator('.jp-OutputArea-output img, .jp-OutputArea-output svg, .jp-OutputArea-output canvas')
        if pictures.count(): pictures.first.scroll_into_view_if_needed()
        page.screenshot(path=shot)
        broken = missing_pictures(page) if pictures.count() else []
        outputs = [o for c in save(page, folder/name)['cells'] for o in c.get('outputs', [])]
        errors = [f'{o["ename"]}: {o["evalue"]}' for o in outputs if o['output_type'] == 'error']
        return outputs, errors, broken, pictures.count()


def test_quickstart_in_jupyterlab(browser, tmp_path, shots):
    if not (ROOT/QUICKSTART).exists(): pytest.skip(f'no {QUICKSTART} yet')
    folder = copy_repo(tmp_path/'a copy')
    outputs, errors, broken, pictures = run_in_lab(browser, folder, tmp_path, QUICKSTART, shots/'quickstart.png', VITNB_QUICK='1')
    assert not errors and not broken
    assert pictures >= 2, f'{pictures} pictures in {len(outputs)} outputs'


def test_run_in_lab_can_complain(browser, tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    kernel = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    cells = ['import os, vitnb; assert os.environ["VITNB_QUICK"] == "1"', 'from PIL import Image; Image.new("RGB", (8, 8))', '1 / 0', '2']
    nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells], metadata=kernel), tmp_path/'bad.ipynb')
    outputs, errors, broken, pictures = run_in_lab(browser, tmp_path, tmp_path/'lab', 'bad.ipynb', tmp_path/'bad.png', VITNB_QUICK='1')
    assert errors == ['ZeroDivisionError: division by zero'] and not broken and pictures == 1 and len(outputs) == 2
