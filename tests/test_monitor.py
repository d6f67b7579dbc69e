"The live monitor: files that change under its eyes, runs that vanish, threads, a terminal, and JupyterLab"
import json, os, platform, pty, re, select, shutil, signal, subprocess, sys, threading, time
from html.parser import HTMLParser

import matplotlib
import pytest
from vitnb.core import UserError
from vitnb.training.runs import Run, append_line, write_json
from vitnb.widgets.monitor import accuracy_html, follow, head_html, monitor, monitor_html, read_monitor, status_line, watch

from conftest import ROOT, clean_env
from test_browser import jupyterlab, wait, watched

EVIL = '<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m"\'&'
DATA = dict(class_names=['a', 'b', 'c'], counts=[9, 3, 1], fingerprint='0', mean=[.5], std=[.5], groups=dict(head=[0], mid=[1], tail=[2], rule='size'))


def make(folder, epochs=0, **status):
    "A run folder as training writes it, of another machine"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder/'config.json', dict(method='deit-lt', config=dict(epochs=40, seed=0, data=dict(dataset='fashion-mnist')), data=DATA))
    write_json(folder/'status.json', dict(state='running', started='2026-01-01T00:00:00', host='elsewhere', pid=1) | status)
    for e in range(epochs): add_epoch(folder, e)
    return Run(folder)


def line(e): return dict(epoch=e, loss=2 / (e + 1), lr=.1, seconds=5., val={h: dict(overall=20. + e, head=30. + e, mid=20., tail=1. + e) for h in ('cls', 'dist', 'avg')})
def add_epoch(folder, e): append_line(folder/'metrics.jsonl', line(e))
def tell(folder, e, step, **more):
    write_json(folder/'progress.json', dict(epoch=e, epochs=40, step=step, steps=38, loss=1.5, images_per_second=512., seconds_left=120., updated='x') | more)


def end(folder, state='finished', **more): write_json(folder/'status.json', json.loads((folder/'status.json').read_text()) | dict(state=state, seconds=9., **more))
def threads(): return [t for t in threading.enumerate() if t.name.startswith('vitnb monitor')]
def text_of(box): return box.children[0].value + box.children[2].value


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


# Reading ------------------------------------------------------------------------------------------------------------

def test_reading_while_files_are_written(tmp_path):
    "A writer that is as rough as can be: files cut short, replaced, emptied"
    run, done = make(tmp_path/'run'), threading.Event()

    def write():
        for e in range(30):
            with open(run.path/'metrics.jsonl', 'a') as f:
                whole = json.dumps(line(e)) + '\n'
                f.write(whole[:40]); f.flush(); time.sleep(.002)
                f.write(whole[40:])
            for step in range(5):
                (run.path/'progress.json').write_text('{"epoch": ')
                (run.path/'progress.json').unlink()
                tell(run.path, e + 1, step)
            end(run.path, 'running')
        done.set()

    writer, last, looks = threading.Thread(target=write), None, 0
    writer.start()
    while not done.is_set() or last.epoch < 30:
        now = read_monitor(run, last)
        assert now.state == 'running' and now.epoch >= (last.epoch if last else 0)
        last, looks = now, looks + 1
    writer.join()
    assert looks > 20 and now.curves.accuracy.shape == (3, 4, 30)


def test_reading_changes_nothing(tmp_path):
    run = make(tmp_path/'run', 3)
    tell(run.path, 3, 1)
    def state(): return {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in run.path.iterdir()}
    before = state()
    monitor(run, .1).close()
    next(follow(run))
    assert state() == before


class Tags(HTMLParser):
    "The names of the tags, and of their attributes"
    def __init__(self, text):
        super().__init__()
        self.names, self.attributes = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attributes}


NONSENSE = [None, True, -1, 10**400, 1e308, float('nan'), EVIL, [], {}, [EVIL], {EVIL: EVIL}, {'overall': EVIL}]


@pytest.mark.parametrize('value', NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_in_the_files(tmp_path, value):
    "Whatever stands in the files: no error, and none of it becomes HTML or reaches a terminal's ear"
    for name, change in dict(progress=lambda p: (p/'progress.json').write_text(json.dumps(value)),
                             numbers=lambda p: (p/'progress.json').write_text(json.dumps(dict.fromkeys(('step', 'steps', 'images_per_second', 'seconds_left', 'loss'), value) | dict(epoch=1))),
                             epoch=lambda p: tell(p, value, 1),
                             metrics=lambda p: (p/'metrics.jsonl').write_text(json.dumps(line(0) | dict(val={EVIL: value, 'ema_cls': value}, seconds=1, loss=value)) + '\n'),
                             status=lambda p: end(p, 'failed', error=value, test={EVIL: value}),
                             state=lambda p: (p/'status.json').write_text(json.dumps(dict(state=value, started=EVIL, test=value, seconds=value))),
                             config=lambda p: write_json(p/'config.json', dict(method=EVIL, config=dict(epochs=value, seed=0, data=dict(dataset=EVIL)), data=DATA))).items():
        run = make(tmp_path/f'{name} "<b>\'&', 1)
        change(run.path)
        shown = read_monitor(run)
        html = monitor_html(shown) if name in ('metrics', 'config') else head_html(shown) + accuracy_html(shown.tables)      # drawing takes long
        tags, text = Tags(html), status_line(shown, 500)
        assert not tags.names & {'script', 'img', 'b>'} and not any(a.startswith('on') for a in tags.attributes), name
        assert text.isprintable() and '\x1b' not in html, name


def test_how_a_run_may_end(tmp_path):
    failed = read_monitor(make(tmp_path/'a run', 2, state='failed', error='UserError: the loss became nan'))
    assert 'the loss became nan' in failed.note and failed.command == f"vitnb resume '{tmp_path}/a run'"
    assert 'the loss became nan' in monitor_html(failed) and 'vitnb resume' in monitor_html(failed)
    here = dict(host=platform.node(), pid=2**30)     # no such process
    assert read_monitor(make(tmp_path/'b', 2, **here)).state == 'stopped'
    none = read_monitor(Run(tmp_path/'none'))
    assert none.state == 'deleted' and 'is gone' in none.note
    hanging = make(tmp_path/'c', 1)
    tell(hanging.path, 1, 3)
    os.utime(hanging.path/'progress.json', (time.time() - 200,) * 2)
    assert 'Nothing new for 3 min' in read_monitor(hanging).note and read_monitor(hanging).state == 'running'


def test_drawing_leaves_matplotlib_alone(tmp_path, monkeypatch):
    "The monitor's thread may draw while a cell draws, so it may not change a setting for an instant"
    monitor_html(shown := read_monitor(make(tmp_path/'run', 3)))
    def changed(*_, **__): raise AssertionError('a setting of matplotlib is changed')
    monkeypatch.setattr(matplotlib, 'rc_context', changed)
    monkeypatch.setattr(matplotlib.RcParams, '__setitem__', changed)
    monkeypatch.setattr(matplotlib.RcParams, '_set', changed)
    assert '<svg' in monitor_html(shown)
    with pytest.raises(AssertionError, match='is changed'): matplotlib.rcParams['svg.fonttype'] = 'none'


# In a notebook's process --------------------------------------------------------------------------------------------

def test_monitor_follows_and_ends(tmp_path):
    run = make(tmp_path/'run')
    boxes = [monitor(run, .1), monitor(str(run.path), .1)]
    assert len(threads()) == 2 and 'first epoch' in text_of(boxes[0])
    add_epoch(run.path, 0)
    wait(lambda: all('<svg' in text_of(b) for b in boxes), 10)
    body = boxes[0].children[2].value
    tell(run.path, 1, 17)
    wait(lambda: all('step 18 of 38' in text_of(b) for b in boxes), 10)
    assert boxes[0].children[2].value is body            # no new epoch, no new drawing
    end(run.path, test=dict(cls=dict(overall=50.), avg=dict(overall=60.)))
    wait(lambda: not threads(), 10)
    assert all('test, last weights' in text_of(b) and 'finished' in text_of(b) for b in boxes)
    assert boxes[0].children[1].layout.display == 'none'


def test_close_and_stop_leave_no_thread(tmp_path):
    from ipywidgets import Widget
    run = make(tmp_path/'run', 1)
    for stop in (lambda b: b.close(), lambda b: b.children[1].click(), lambda b: Widget.close_all()):
        box = monitor(run, 60)
        assert len(threads()) == 1
        start = time.monotonic()
        stop(box)
        assert not threads() and time.monotonic() - start < 5
    assert not threads()


def test_a_run_deleted_while_watched(tmp_path, capfd):
    box = monitor(run := make(tmp_path/'run', 2), .1)
    shutil.rmtree(run.path)
    wait(lambda: not threads(), 10)
    assert 'The run folder is gone' in text_of(box) and '<svg' in text_of(box)      # what was known is still shown
    with pytest.raises(UserError, match='no run folder'): monitor(run)
    assert not capfd.readouterr().err


# In a terminal ------------------------------------------------------------------------------------------------------

def command(run, *more): return [sys.executable, '-m', 'vitnb.cli', 'watch', str(run.path), '--every', '.1', *more]


def in_terminal(cmd, then):
    "Run a command in a terminal of 100 columns; `then(output so far, process)` is called after every piece of output"
    master, slave = pty.openpty()
    process = subprocess.Popen(cmd, stdin=slave, stdout=slave, stderr=slave, env=clean_env(PYTHONPATH=str(ROOT), COLUMNS='100'), close_fds=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))       # tests started in the background ignore it, and a child would too
    os.close(slave)
    seen, stop = b'', time.monotonic() + 60
    try:
        while time.monotonic() < stop:
            if select.select([master], [], [], .2)[0]:
                try: piece = os.read(master, 65536)
                except OSError: break        # it has ended
                if not piece: break
                seen += piece
                then(seen.decode(errors='replace'), process)
        return process.wait(10), seen.decode()
    finally:
        process.kill()
        os.close(master)


def test_watch_in_a_terminal(tmp_path):
    run, said = make(tmp_path/'run', 2), []
    def then(text, process):
        if '5 %' in text and not said: said.append(1); add_epoch(run.path, 2); tell(run.path, 3, 18)
        if 'step 19 of 38' in text and len(said) == 1: said.append(2); end(run.path, test=dict(avg=dict(overall=61.2, head=1., mid=1., tail=1.)))
    status, text = in_terminal(command(run), then)
    assert status == 0 and '512 images/s · 2 min left' in text and '61.2' in text
    assert all(len(part) <= 100 for part in re.split('[\r\n]', text))


def test_watch_and_ctrl_c(tmp_path):
    run, sent = make(tmp_path/'run', 2), []
    def then(text, process):
        if '5 %' in text and not sent: sent.append(process.send_signal(signal.SIGINT))
    status, text = in_terminal(command(run), then)
    assert status == 0 and 'the run goes on' in text and 'Traceback' not in text and run.status['state'] == 'running'


def test_watch_in_a_log(tmp_path):
    "A line an epoch, and the status of an error when the run failed"
    def call(run): return subprocess.run(command(run), capture_output=True, text=True, timeout=60, env=clean_env(PYTHONPATH=str(ROOT)))
    good = call(make(tmp_path/'good', 3, state='finished', test=dict(avg=dict(overall=61.2))))
    assert good.returncode == 0 and good.stdout.count('\nepoch ') == 3 and '\r' not in good.stdout and not good.stderr
    bad = call(make(tmp_path/'bad', 3, state='failed', error='no space'))
    assert bad.returncode == 2 and bad.stderr.startswith('vitnb: It failed after 3 of 40 epochs: no space') and 'vitnb resume' in bad.stderr and bad.stderr.count('\n') == 1
    none = call(Run(tmp_path/'none'))
    assert none.returncode == 2 and 'no run folder' in none.stderr and none.stderr.count('\n') == 1


def test_watch_does_not_load_torch(tmp_path):
    run = make(tmp_path/'run', 1, state='finished')
    code = f'import sys, vitnb.cli; vitnb.cli.main(["watch", {str(run.path)!r}]); sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], env=clean_env(PYTHONPATH=str(ROOT)), capture_output=True).returncode == 0


def test_every_must_make_sense(tmp_path):
    for every in (0, -1, float('nan'), float('inf')):
        with pytest.raises(UserError, match='seconds'): watch(make(tmp_path/'run'), every)


# In JupyterLab ------------------------------------------------------------------------------------------------------

def test_monitor_in_jupyterlab(browser, tmp_path, shots):
    "The card appears, is brought up to date while another cell computes, and its button works"
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    run = make(tmp_path/'run', 5)
    tell(run.path, 5, 17)
    kernel = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    cells = ['from vitnb.widgets.monitor import monitor\nmonitor("run", every=.5)',
             'import pathlib, time\nwhile not pathlib.Path("go").exists(): time.sleep(.1)', 'monitor("run", every=.5)']
    nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells], metadata=kernel), tmp_path/'watch.ipynb')
    with jupyterlab(tmp_path, tmp_path/'lab', PYTHONPATH=str(ROOT)) as (url, token), watched(browser, viewport=dict(width=1280, height=900)) as (page, wrong):
        page.goto(f'{url}/lab/tree/watch.ipynb?reset&token={token}')
        page.locator('#jp-main-statusbar').get_by_text('| Idle').wait_for(timeout=120_000)
        page.click('.lm-MenuBar-itemLabel:text-is("Run")')
        page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
        card = page.locator('.vitnb-card').first
        card.get_by_text('epoch 6 of 40, step 18 of 38').wait_for(timeout=60_000)
        drawing = card.locator('svg').inner_html()
        add_epoch(run.path, 5)
        tell(run.path, 6, 3)
        card.get_by_text('epoch 7 of 40, step 4 of 38').wait_for(timeout=20_000)      # cell 2 is still busy
        card.get_by_text('validation, epoch 6').wait_for(timeout=20_000)
        assert card.locator('svg').inner_html() != drawing and page.locator('.jp-InputPrompt').filter(has_text='[*]:').count() == 2
        (tmp_path/'go').touch()
        second = page.locator('.vitnb-card').nth(1)
        second.get_by_text('epoch 7 of 40').wait_for(timeout=20_000)
        card.get_by_role('button', name='Stop watching').click()
        card.get_by_text('the run goes on').wait_for(timeout=20_000)
        end(run.path, test=dict(avg=dict(overall=61.2, head=80., mid=60., tail=40.)))
        second.get_by_text('test, last weights').wait_for(timeout=20_000)
        assert card.get_by_text('test, last weights').count() == 0
        for box in (card, second): assert box.bounding_box()['width'] > 500 and not box.evaluate('e => e.scrollWidth > e.clientWidth')
        page.screenshot(path=shots/'monitor.png')
        assert not wrong
