"""How long a hand waits: from a key press to the new picture, in JupyterLab under headless Chromium.

    python bench/widgets.py

It trains a run for a minute, opens the workbench on it and on a DeiT-Ti of 224 px without pretrained weights, and presses
keys. Beside it, on the same image and in the same page: the same map drawn by matplotlib into an image widget, and by
matplotlib's inline figures under `interact`, which is how most notebooks do it. Wall time, because a browser and a kernel
share it; a busy machine makes all of them slower. Also: the first view of a saved run, and the size of the saved notebook.
"""
from common import ROOT, options, table, write
import json, os, statistics, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(ROOT/'tests'))
from test_browser import jupyterlab, run_all, save, watched      # noqa: E402  the same browser as in the tests
from test_workbench import at_rest      # noqa: E402

TARGETS = {'block': 60, 'head': 60, 'column': 60, 'CLS share': 60, 'variance': 60, 'block of the rank view': 60, 'ρ': 60, 'image, DeiT-Ti': 400}
PREPARE = '''
import time, torch
from vitnb.data.sets import DataConfig, long_tailed, ImageSet
from vitnb.methods.deit import packaged_teachers
from vitnb.methods.deit_lt import DeiTLT
from vitnb.training.train import train
short = dict(data=DataConfig(n_max=300, val_fraction=0), epochs=1)
run = train(DeiTLT(**short, teacher=str(packaged_teachers()[0])), 'deit-lt', 'run', long_tailed(short['data']))
'''
FIRST = '''
import time
from vitnb.widgets.view import still
from vitnb.widgets.workbench import workbench
start = time.perf_counter()
bench = workbench('run')
picture = still(bench)
print('first view', time.perf_counter() - start)
bench
'''
TINY = '''
import timm, torch
from vitnb.data.sets import ImageSet
from vitnb.widgets.state import ModelSubject
from vitnb.widgets.attention_view import AttentionView
torch.manual_seed(0)
pictures = ImageSet(torch.randint(0, 256, (60, 3, 224, 224), dtype=torch.uint8), torch.arange(60) % 10, tuple('abcdefghij'))
tiny = AttentionView({'DeiT-Ti': ModelSubject(timm.create_model('deit_tiny_distilled_patch16_224'), pictures, 'DeiT-Ti')})
tiny
'''
OTHERS = '''
import io, ipywidgets as w, matplotlib.pyplot as plt, numpy as np
from matplotlib.figure import Figure
from vitnb.widgets.attention_view import query_rows
record = tiny.subject.record(0)
maps, image = query_rows(record.attention, 0).mean(1), record.pixels
def figure(block):
    f = Figure((4, 4)); ax = f.subplots(); ax.imshow(image); ax.imshow(maps[block], cmap='cividis', alpha=.5, extent=(0, 224, 224, 0)); ax.axis('off')
    f.savefig(b := io.BytesIO(), format='png'); return b.getvalue()
slider, picture = w.IntSlider(0, 0, 11, description='drawn'), w.Image(value=figure(0), format='png')
slider.observe(lambda c: setattr(picture, 'value', figure(c['new'])), 'value')
def inline(inlined=0):
    plt.imshow(image); plt.imshow(maps[inlined], cmap='cividis', alpha=.5, extent=(0, 224, 224, 0)); plt.axis('off'); plt.show()
box = w.VBox([slider, picture, w.interactive(inline, inlined=(0, 11))]).add_class('others')
box
'''
# the time from the key to the first picture that is drawn anew, of `n` presses; -1 for one without a new picture
PRESS = '''async ([root, label, keys, n, pause]) => {
  const seen = e => e && (e.offsetParent || e.getClientRects().length);
  const box = [...root.querySelectorAll('.widget-inline-hbox')].filter(seen).find(e => e.querySelector('.widget-label')?.textContent === label);
  if (!box) throw Error('no control ' + label);
  const handle = box.querySelector('.noUi-handle'), out = [];
  handle.focus();
  for (let k = 0; k < n; k++) {
    const t = performance.now();
    const done = new Promise(r => {
      const finish = () => { watch.disconnect(); root.removeEventListener('load', finish, true); requestAnimationFrame(() => r(performance.now())); };
      const watch = new MutationObserver(ms => { if (ms.some(m => [...m.addedNodes].some(x => x.nodeType === 1 && (x.matches('figure, svg, .said') || x.querySelector('figure, svg'))))) finish(); });
      watch.observe(root, { childList: true, subtree: true });
      root.addEventListener('load', finish, true);
    });
    const [key, code] = keys[k % keys.length];
    handle.dispatchEvent(new KeyboardEvent('keydown', { key, code: key, keyCode: code, bubbles: true }));
    const end = await Promise.race([done, new Promise(r => setTimeout(() => r(-1), 8000))]);
    out.push(end < 0 ? -1 : end - t);
    await new Promise(r => setTimeout(r, pause));
  }
  return out;
}'''
RIGHT, LEFT = ['ArrowRight', 39], ['ArrowLeft', 37]


def press(root, label, n, keys=(LEFT, RIGHT), pause=250):
    times = [t for t in root.evaluate(f'(e, [l, k, n, p]) => ({PRESS})([e, l, k, n, p])', [label, list(keys), n, pause]) if t >= 0]
    return dict(median=statistics.median(times), low=min(times), high=max(times), n=len(times)) if times else dict(median=-1., low=-1., high=-1., n=0)


def tab(root, name, page, label):
    "Bring a view to the front, and wait for its control and for quiet"
    root.locator(f'.lm-TabBar-tabLabel:text-is("{name}")').click()
    root.locator(f'.widget-label:text-is("{label}"):visible').first.wait_for()
    at_rest(root)


def measure(page, n: int) -> dict[str, dict]:
    "Milliseconds by what is moved"
    bench, tiny = (page.locator('.jp-CodeCell').nth(i).locator('.vitnb-view').first for i in (1, 2))
    found = {name: press(bench, name, n) for name in ('block', 'head')}
    bench.locator('button:visible', has_text='a patch').click()
    page.wait_for_timeout(500)
    found['column'] = press(bench, 'column', n, (RIGHT, LEFT))
    tab(bench, 'Experts', page, 'CLS share')
    found['CLS share'] = press(bench, 'CLS share', n)
    tab(bench, 'Rank', page, 'variance')
    found['variance'], found['block of the rank view'] = press(bench, 'variance', n), press(bench, 'block', n)
    tab(bench, 'Long tail', page, 'ρ')
    found['ρ'] = press(bench, 'ρ', n)
    found['block, DeiT-Ti'] = press(tiny, 'block', n)
    found['image, DeiT-Ti'] = press(tiny, 'image', n, (RIGHT,), 600)
    others = page.locator('.others').first
    found['matplotlib into an image widget'], found['interact with an inline figure'] = press(others, 'drawn', n, (RIGHT, LEFT)), press(others, 'inlined', n, (RIGHT, LEFT), 600)
    return found


def main():
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    from playwright.sync_api import sync_playwright
    import shutil
    asked = options(__doc__.split('\n')[0], presses=20)
    kernel = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as p:
        (folder := Path(name)/'notebooks').mkdir()
        nbformat.write(new_notebook(cells=[new_code_cell(c.strip()) for c in (PREPARE, FIRST, TINY, OTHERS)], metadata=kernel), folder/'bench.ipynb')
        browser = p.chromium.launch(executable_path=shutil.which('chromium') or shutil.which('chromium-browser'), args=flags)
        with jupyterlab(folder, Path(name), PYTHONPATH=str(ROOT)) as (url, token), watched(browser, viewport=dict(width=1280, height=1900)) as (page, wrong):
            page.set_default_timeout(300_000)
            page.goto(f'{url}/lab/tree/bench.ipynb?reset&token={token}')
            run_all(page, 10)
            page.wait_for_timeout(3000)
            found = measure(page, asked.presses)
            page.wait_for_timeout(3000)
            nb = save(page, folder/'bench.ipynb')
        text = ''.join(''.join(o.get('text', '')) for c in nb['cells'] for o in c.get('outputs', []))
        first, size = float(text.split('first view')[1].split()[0]), (folder/'bench.ipynb').stat().st_size
        browser.close()
    print(table(['moved', 'median, ms', 'target'], [[k, f'{v["median"]:.0f} ({v["low"]:.0f}–{v["high"]:.0f})', TARGETS.get(k, '')] for k, v in found.items()]))
    print(f'first view of a saved run: {first:.2f} s (target 2); notebook saved: {size / 1e6:.2f} MB (target 2); load {os.getloadavg()[0]:.1f}; errors in the page: {len(wrong)}')
    write('widgets', dict(milliseconds=found, first_view_seconds=first, notebook_bytes=size, load=os.getloadavg()[0]), asked.out)


if __name__ == '__main__': main()
