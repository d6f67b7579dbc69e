"The workbench: runs that lack something, hostile names and files, and a whole journey through JupyterLab"
import importlib.util, json, os, shutil, signal, socket, subprocess, sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from vitnb.cli import look_command, look_notebook
from vitnb.core import UserError
from vitnb.data.longtail import size_groups
from vitnb.data.sets import ImageSet
from vitnb.models.student import StudentConfig, make_student, save_weights
from vitnb.training.runs import Run, write_json
from vitnb.widgets.attention_view import AttentionView
from vitnb.widgets.expert_view import ExpertView
from vitnb.widgets.longtail_view import LongTailView
from vitnb.widgets.rank_view import RankView
from vitnb.widgets.state import RunSubject, make_state, state_dict
from vitnb.widgets.view import still
from vitnb.widgets.workbench import Workbench, saved_state, workbench

from conftest import ROOT, clean_env
from test_browser import free_port, jupyterlab, run_all, save, wait, watched

EVIL = '<img src=x onerror=alert(1)>'
TUTORIAL = 'nbs/tutorials/reading_a_run.ipynb'
SMALL = dict(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2)


class Made(RunSubject):
    "A run with test images of its own"
    @property
    def test(self): return self.images


def make(folder, classes=3, channels=1, heads=('cls', 'dist'), predictions=True, weights=True, groups=None, state='finished'):
    "A run with a small untrained student, and its test images"
    folder.mkdir(parents=True)
    random, counts = np.random.RandomState(0), np.arange(classes, 0, -1)
    labels = np.arange(max(40, min(classes, 300))) % classes
    g = groups or size_groups(counts)
    names = [f'{EVIL} {i}' for i in range(classes)]
    data = dict(class_names=names, counts=counts.tolist(), fingerprint='', mean=[.5] * channels, std=[.5] * channels, groups=dict(head=list(g.head), mid=list(g.mid), tail=list(g.tail), rule=f'by {EVIL}'))
    write_json(folder/'config.json', dict(method=EVIL, config=dict(epochs=3, seed=0, teacher=None, data=dict(dataset=EVIL)), data=data))
    write_json(folder/'status.json', dict(state=state, started='', host='elsewhere', pid=1))
    def answers(): return (random.randn(len(labels), classes) + 9 * random.randint(0, 2, (len(labels), 1)) * (labels[:, None] == range(classes))).astype(np.float32)
    if predictions: np.savez(folder/'predictions.npz', labels=labels, **{h: answers() for h in heads})
    if weights:
        config = StudentConfig(in_chans=channels, num_classes=classes, **SMALL)
        save_weights(make_student(config), folder/'model.safetensors', kind='student', config=asdict(config))
    subject = Made(Run(folder), folder.name)
    subject.images = ImageSet(torch.from_numpy(random.randint(0, 256, (len(labels), channels, 16, 16), dtype=np.uint8)), torch.from_numpy(labels), tuple(names))
    return subject


def bench(*subjects, **state): return Workbench({s.name: s for s in subjects}, make_state(state))


def texts(view):
    "All the HTML of a view's widgets; labels, options and tooltips are text for the browser"
    from ipywidgets import HTML, Widget
    found, todo = [], [view.box if hasattr(view, 'box') else view]
    while todo:
        w = todo.pop()
        if isinstance(w, HTML): found.append(w.value)
        todo += [c for c in getattr(w, 'children', ()) if isinstance(c, Widget)]
    return '\n'.join(found)


def look_everywhere(b):
    "Every tab, with what each says is wrong"
    said = {}
    for i, name in enumerate(('attention', 'experts', 'rank', 'long tail', 'training')):
        b.state.view = i
        said[name] = b.views[name].note.value + b.note.value
        assert 'could not be drawn' not in said[name], said[name]
        data, _ = still(b.views[name])          # the picture for static pages is always there
        assert data['image/png'][:4] == b'\x89PNG'
    return said


# What may be missing or odd -----------------------------------------------------------------------------------------

def test_names_with_markup_appear_as_text(tmp_path):
    b = bench(make(tmp_path/'a'), make(tmp_path/f'b{EVIL.replace("/", "")}'))
    look_everywhere(b)
    b.state.choice, b.state.view = 'one class', 0
    b.state.other, b.state.compare = list(b.subjects)[1], 'the other run'
    found = texts(b) + ''.join(texts(v) for v in b.views.values())
    assert '<img' not in found and '&lt;img' in found


@pytest.mark.parametrize('channels, classes', [(1, 2), (3, 3), (16, 5), (2, 8142)])
def test_any_channels_and_classes(tmp_path, channels, classes):
    b = bench(make(tmp_path/'run', classes, channels))
    said = look_everywhere(b)
    assert not any(said[n] for n in ('attention', 'experts', 'rank', 'long tail')), said
    b.state.share = .2
    assert not b.views['experts'].note.value and 'mix, 20 % CLS' in b.views['experts'].numbers.value


def test_without_predictions(tmp_path):
    said = look_everywhere(b := bench(make(tmp_path/'run', predictions=False)))
    assert 'no predictions' in said['experts'] and not said['attention'] and not said['rank']
    assert b.views['attention'].pictures[1][1].value


def test_without_dist(tmp_path):
    b = bench(make(tmp_path/'run', heads=('out',)))
    said = look_everywhere(b)
    assert 'one head' in said['experts'] and 'network' in b.views['experts'].numbers.value
    b.state.choice = 'only DIST right'
    assert 'one head' in b.picker.note.value and not b.views['attention'].note.value


def test_while_it_trains(tmp_path):
    "No weights and no predictions yet: the training is in front; what comes later is found when it is read again"
    subject = make(tmp_path/'run', predictions=False, weights=False, state='running')
    b = bench(subject)
    assert b.state.view == 4 and 'running' in b.top.value
    said = look_everywhere(b)
    assert 'running' in said['experts'] and 'running' in said['attention']
    b.views['training'].place.children[0].close()          # ends its thread
    make(tmp_path/'done')
    for name in ('model.safetensors', 'predictions.npz'): shutil.copy(tmp_path/'done'/name, tmp_path/'run'/name)
    write_json(tmp_path/'run/status.json', dict(state='finished', started=''))
    b.state.view = 1
    b.again.click()
    assert not b.views['experts'].note.value


def test_an_empty_group(tmp_path):
    from vitnb.data.longtail import Groups
    b = bench(make(tmp_path/'run', groups=Groups((0,), (1, 2), (), 'no tail')))
    said = look_everywhere(b)
    assert not said['experts'] and '–' in b.views['experts'].numbers.value
    b.state.choice = 'tail'
    assert 'no test image is of this kind' in b.picker.note.value
    b.state.choice = 'head'
    assert not b.picker.note.value and b.state.image in (0, 3, 6)


def test_files_that_are_no_images(tmp_path):
    (bad := tmp_path/'no image.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b'x' * 100)
    Image.new('RGB', (30, 20), 'teal').save(good := tmp_path/f'{EVIL.replace("/", "")}.png')
    b = bench(make(tmp_path/'run'))
    for path in (bad, tmp_path, tmp_path/'none.png', '\0'):
        b.state.file = str(path)
        assert b.views['attention'].note.value and 'could not be drawn' not in b.views['attention'].note.value, path
    b.state.file = str(good)
    assert not b.views['attention'].note.value and '<img' not in b.views['attention'].said.value
    b.state.file = ''
    assert not b.views['attention'].note.value


def test_damaged_files(tmp_path):
    subject = make(tmp_path/'run')
    for name in ('model.safetensors', 'predictions.npz'): (tmp_path/'run'/name).write_bytes(b'no')
    said = look_everywhere(bench(subject))
    assert 'predictions.npz' in said['experts'] and 'safetensors' in said['attention'] and not said['long tail']


def test_a_state_makes_the_same_picture(tmp_path):
    subject = make(tmp_path/'run')
    for i, views in enumerate((AttentionView, ExpertView, RankView, LongTailView)):
        first = views({'run': subject}, make_state(block=2, head=1, query='dist', image=3, share=.2, threshold=.8, rho=7., largest=90))
        again = views({'run': subject}, make_state(json.dumps(state_dict(first.state))))
        assert first.figure().as_bytes() == again.figure().as_bytes()
        for kind in ('png', 'svg', 'pdf'): assert first.save(tmp_path/f'{i}.{kind}').stat().st_size > 1000


# The command --------------------------------------------------------------------------------------------------------

def test_look(tmp_path, capsys, monkeypatch):
    make(tmp_path/'a')
    look_command((tmp_path/'a',), open=False)
    assert 'jupyterlab' in capsys.readouterr().out
    notebook = look_notebook([tmp_path/'a'])
    before = notebook.read_bytes()
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"vitnb\[app\]"): look_command((tmp_path/'a',), app=True)
    assert notebook.read_bytes() == before and saved_state(notebook) == {}
    with pytest.raises(UserError, match='run folder'): look_command((tmp_path/'none',), open=False)


# Made images --------------------------------------------------------------------------------------------------------

def test_made_images(tmp_path):
    "Names with markup are text; a class without images, other classes than the real ones, and a network that is not known are each told in a line"
    from vitnb.widgets.made_view import made_view
    about = dict(class_names=[EVIL.replace('/', ''), 'none'], settings=dict(sha256='0', per_class=14, batch_size=1, variety='none'), batches={str(b): {} for b in range(0, 28, 2)})     # those of the second class are not finished
    (folder := tmp_path/'made'/'train'/about['class_names'][0]).mkdir(parents=True)
    for i in range(14): Image.fromarray(np.random.RandomState(i).randint(0, 256, (16, 16), dtype=np.uint8)).save(folder/f'{2 * i:05d}-0000.png')
    write_json(tmp_path/'made/about.json', about)
    view = made_view(tmp_path/'made')
    assert 'no real image has one of these classes' in view.note.value and view.page.max == 2 and '<img src=x' not in texts(view)
    view = made_view(tmp_path/'made', real=ImageSet(torch.zeros(3, 1, 16, 16, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), (about['class_names'][0],)))
    assert 'name it with teacher=' in view.note.value and view.cards.value.count('<img alt="made') == 12 and '<img src=x' not in texts(view)
    view.label.value = 1
    assert 'there is no made image of none' in view.note.value and still(view)[0]['image/png']
    for damaged in ('{', '{}', '[]'):
        (tmp_path/'made/about.json').write_text(damaged)
        with pytest.raises(UserError): made_view(tmp_path/'made')
    with pytest.raises(UserError, match='was not filled by'): made_view(tmp_path/'nowhere')


# In JupyterLab ------------------------------------------------------------------------------------------------------

# what must change the pictures of its tab: (label, kind, what is done)
MOVES = {'Attention': [('block', 'slider', 'ArrowLeft'), ('head', 'slider', 'ArrowRight'), ('scale', 'menu', 'all blocks'), ('compare', 'menu', 'the other token'), ('method', 'menu', 'rollout'),
                       ('method', 'menu', 'attention'), ('query', 'toggle', 'DIST'), ('query', 'toggle', 'a patch'), ('row', 'slider', 'ArrowRight'), ('column', 'slider', 'ArrowRight'),
                       ('image', 'slider', 'ArrowRight'), ('run', 'menu', 'vit'), ('run', 'menu', 'deit-lt')],
         'Experts': [('CLS share', 'slider', 'ArrowLeft'), ('mix of', 'menu', 'probabilities'), ('run', 'menu', 'vit'), ('run', 'menu', 'deit-lt')],
         'Rank': [('variance', 'slider', 'PageDown'), ('block', 'slider', 'ArrowRight'), ('token', 'menu', 'DIST'), ('second', 'menu', 'vit'), ('vit', 'tick', 'Space'), ('vit', 'tick', 'Space'), ('run', 'menu', 'vit'), ('run', 'menu', 'deit-lt')],
         'Long tail': [('classes', 'slider', 'PageUp'), ('largest', 'slider', 'ArrowLeft'), ('ρ', 'slider', 'ArrowLeft'), ('profile', 'menu', 'step'), ('groups', 'menu', 'count'), ('β', 'menu', '0.99')]}
# pictures and charts that can be seen, as a text that changes with them
SEEN = '''e => [...e.querySelectorAll('img, figure svg')].filter(i => i.offsetParent || i.closest('figure')?.offsetParent)
    .map(i => i.src || [...i.innerHTML].reduce((h, c) => (h * 31 + c.charCodeAt(0)) | 0, 7)).join()'''


def control(root, label):
    "The control with this label that can be seen"
    return root.locator('.widget-inline-hbox:visible', has=root.page.locator(f'.widget-label:text-is("{label}")')).first


def move(root, label, kind, what):
    "Do what a hand would, with the keyboard where there is one"
    if kind == 'menu': control(root, label).locator('select').select_option(label=what)
    elif kind == 'tick': root.locator('.ticks .widget-checkbox:visible', has_text=label).locator('input').press(what)
    elif kind == 'toggle': root.locator('.widget-toggle-buttons:visible button', has_text=what).click()
    else:
        handle = control(root, label).locator('.noUi-handle')
        for _ in range(3):                   # JupyterLab may take the keyboard back to its cell before the key arrives
            handle.press(what)
            if handle.evaluate('e => e === document.activeElement'): return


def found(root, label):
    "What a failure should tell: the control as it is, what has the keyboard, and what the view says"
    return f'{control(root, label).inner_text()!r}; in focus: {root.page.evaluate("document.activeElement.outerHTML.slice(0, 150)")}; notes: {root.locator(".note:visible").all_inner_texts()}'


def at_rest(root):
    "What can be seen, when it does not change any more and JupyterLab's kernel has nothing to do"
    before, bar = None, root.page.locator('#jp-main-statusbar')
    for _ in range(250):
        if (now := root.evaluate(SEEN)) == before and ('Idle' in bar.inner_text() if bar.count() else True): return now
        before = now
        root.page.wait_for_timeout(700)
    raise AssertionError('the pictures or the kernel do not come to rest')


def in_theme(page, name):
    page.click('.lm-MenuBar-itemLabel:text-is("Settings")')
    page.hover('.lm-Menu-itemLabel:text-is("Theme")')
    page.click(f'.lm-Menu-itemLabel:text-is("{name}")')
    page.wait_for_timeout(1000)


def test_workbench_in_jupyterlab(browser, tmp_path, shots, quick_report):
    "The tutorial from start to end; then every control of every tab, by key; then the notebook is saved and found to hold the state and a picture"
    (folder := tmp_path/'a copy').mkdir()
    shutil.copy(ROOT/TUTORIAL, folder/'read.ipynb')
    env = dict(PYTHONPATH=str(ROOT), RUNS=str(quick_report.parents[1]))
    with jupyterlab(folder, tmp_path, **env) as (url, token), watched(browser, viewport=dict(width=1280, height=1900)) as (page, wrong):
        page.goto(f'{url}/lab/tree/read.ipynb?reset&token={token}')
        run_all(page, 10)
        assert page.locator('.jp-mod-error, [data-mime-type$="stderr"]').all_inner_texts() == []
        root = page.locator('.vitnb-view').first
        assert root.locator('.note:visible').count() == 0
        assert page.locator('img.jp-mod-unconfined:visible').count() == 0       # the still picture is hidden while the views live
        move(root, 'compare', 'menu', 'nothing')                             # the tutorial's last cells have set it
        move(root, 'images', 'menu', 'all')
        for tab, moves in MOVES.items():
            root.locator(f'.lm-TabBar-tabLabel:text-is("{tab}")').click()
            wait(lambda: root.evaluate(SEEN), 90)
            wait(lambda: control(root, moves[0][0]).count(), 90)
            for label, kind, what in moves:
                before = at_rest(root)
                move(root, label, kind, what)
                try: wait(lambda: root.evaluate(SEEN) != before, 60)
                except AssertionError: raise AssertionError(f'{tab}: {label}, {what} changes no picture: {found(root, label)}; in the page: {wrong}; JupyterLab: {(tmp_path/"log").read_text()[-1500:]}') from None
            at_rest(root)
            assert root.locator('.note:visible').count() == 0, (tab, root.locator('.note:visible').all_inner_texts())
            root.screenshot(path=shots/f'workbench-{tab.lower().replace(" ", "-")}.png')
            assert not root.evaluate('e => e.scrollWidth > e.clientWidth'), f'{tab} is cut off'
        root.locator('.lm-TabBar-tabLabel:text-is("Experts")').click()
        if root.locator('button:visible', has_text='open').count() == 0: root.locator('select:visible', has_text='CLS right, DIST wrong').select_option(label='CLS right, DIST wrong')
        root.locator('button:visible', has_text='open').first.click()        # an image on which they disagree
        wait(lambda: root.locator('.lm-mod-current .lm-TabBar-tabLabel').inner_text() == 'Attention', 30)
        control(root, 'own file').locator('input').fill('no such file.png')
        page.keyboard.press('Enter')
        root.locator('.note:visible').get_by_text('there is no file').wait_for(timeout=30_000)
        control(root, 'own file').locator('input').fill('')
        page.keyboard.press('Enter')
        wait(lambda: root.locator('.note:visible').count() == 0, 30)
        for picture, x, y in (('picture or map', 30, 30), ('small maps of all blocks and heads', 120, 60)):     # what the sliders do, by clicking
            before = at_rest(root)
            root.locator(f'img[alt="{picture}"]:visible').first.click(position=dict(x=x, y=y))
            wait(lambda: root.evaluate(SEEN) != before, 30)
        assert root.locator('.widget-toggle-buttons:visible button.mod-active', has_text='a patch').count() == 1
        in_theme(page, 'JupyterLab Dark')
        for tab in MOVES:
            root.locator(f'.lm-TabBar-tabLabel:text-is("{tab}")').click()
            page.wait_for_timeout(500)
            root.screenshot(path=shots/f'workbench-{tab.lower().replace(" ", "-")}-dark.png')
        page.wait_for_timeout(3000)                                          # the still picture follows
        nb = save(page, folder/'read.ipynb')
        in_theme(page, 'JupyterLab Light')
        assert not wrong
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert sum('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs) == 1
    assert sum('state: {' in ''.join(o.get('data', {}).get('text/plain', '')) and 'image/png' in o['data'] for o in outputs) == 1
    assert (folder/'read.ipynb').stat().st_size < 2e6 and saved_state(folder/'read.ipynb')['view'] == 3


# As an app ----------------------------------------------------------------------------------------------------------

def listens(port):
    try: return not socket.create_connection(('127.0.0.1', port), 5).close()
    except OSError: return False


@pytest.mark.skipif(importlib.util.find_spec('voila') is None, reason='Voilà is not installed: pip install "vitnb[app]"')
def test_workbench_as_an_app(browser, tmp_path, shots, quick_report):
    "The page of `vitnb look --app`: it moves, by key and by click, shows each view once, and asks no other machine for anything"
    for name in ('deit-lt', 'vit'): shutil.copytree(quick_report.parents[1]/name, tmp_path/name, ignore=shutil.ignore_patterns('look*'))
    port, notebook = free_port(), look_notebook([tmp_path/'deit-lt', tmp_path/'vit'])
    code = f'import sys; from vitnb.cli import serve_app; serve_app(sys.argv[1], "--no-browser", "--port={port}")'
    with open(tmp_path/'log', 'wb') as log: server = subprocess.Popen([sys.executable, '-c', code, notebook], env=clean_env(PYTHONPATH=str(ROOT)), stdout=log, stderr=log, start_new_session=True)
    try:
        wait(lambda: listens(port) or server.poll() is not None, 90)
        assert server.poll() is None, (tmp_path/'log').read_text()[-3000:]
        with watched(browser, viewport=dict(width=1280, height=1900)) as (page, wrong):
            page.on('request', lambda r: wrong.append(f'asks for {r.url}') if not r.url.startswith((f'http://127.0.0.1:{port}/', 'data:', 'blob:')) else None)
            page.goto(f'http://127.0.0.1:{port}/', timeout=180_000)
            (root := page.locator('.vitnb-view').first).wait_for(timeout=180_000)
            for label, kind, what in (('block', 'slider', 'ArrowLeft'), ('compare', 'menu', 'the other token'), ('query', 'toggle', 'DIST')):
                before = at_rest(root)
                move(root, label, kind, what)
                wait(lambda: root.evaluate(SEEN) != before, 60)
            before = at_rest(root)
            root.locator('img[alt="picture or map"]:visible').first.click(position=dict(x=30, y=30))
            wait(lambda: root.evaluate(SEEN) != before, 30)
            for tab in ('Experts', 'Rank', 'Long tail', 'Attention'):
                root.locator(f'.lm-TabBar-tabLabel:text-is("{tab}")').click()
                wait(lambda: control(root, MOVES[tab][0][0]).count(), 90)
                at_rest(root)
                root.screenshot(path=shots/f'app-{tab.lower().replace(" ", "-")}.png')
            assert page.locator('img.jp-mod-unconfined:visible, img.unconfined:visible').count() == 0       # the still picture is not shown twice
            assert root.locator('.note:visible').count() == 0 and not wrong
            assert not page.evaluate('document.documentElement.scrollWidth > document.documentElement.clientWidth')
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
