"What several tests share: the repository's files, a copy of them, commands, the wheel as a user gets it, a quick demo, Chromium"
import dataclasses, os, shutil, subprocess, sys, sysconfig, venv
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NO_NETWORK = ('Could not find a version', 'No matching distribution', 'Failed to establish', 'ConnectionError', 'name resolution')


# what takes longest begins first, so that processes that test side by side end together
LONG = ['test_demo.py', 'test_processes.py', 'test_packaging.py', 'test_workbench.py', 'test_resume.py', 'test_browser.py', 'test_bad_input.py']


def pytest_collection_modifyitems(items):
    items.sort(key=lambda i: LONG.index(i.path.name) if i.path.name in LONG else len(LONG))


def repo_files():
    "Files git tracks or would track, relative to the repository's root"
    # a checkout may belong to somebody else (containers), which git refuses unless told that it is meant
    cmd = ['git', '-c', 'safe.directory=*', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    names = subprocess.run(cmd, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split('\0')
    return sorted({n for n in names if n and (ROOT/n).is_file()})


def copy_repo(to):
    "Copy the repository's files to `to`, so that a test may change them"
    for name in repo_files():
        (to/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, to/name)
    return to


def clean_env(**more):
    "The environment without what could lead Python back into the repository"
    return {**{k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}, **more}


def call(*cmd, cwd, minutes=10, **env):
    "Run a command, return what it printed; when it fails, fail with what it printed"
    done = subprocess.run([str(c) for c in cmd], cwd=cwd, env=clean_env(**env), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60*minutes)
    assert done.returncode == 0, f'{cmd} ended with {done.returncode}:\n{done.stdout[-5000:]}'
    return done.stdout


@pytest.fixture(scope='session')
def data():
    "The embedded images with a long tail"
    from vitnb.data.sets import long_tailed
    return long_tailed()


def some(data, n=256):
    "A part of the data with every class in it"
    order = np.argsort(np.random.RandomState(0).rand(len(data.train)))[:n]
    keep = np.union1d(order, [int((data.train.labels == c).nonzero()[0]) for c in range(data.num_classes)])
    every = lambda images, step: images.subset(range(0, len(images), step))
    return dataclasses.replace(data, train=data.train.subset(keep), val=every(data.val, 20), test=every(data.test, 100))


@pytest.fixture
def repo_copy(tmp_path): return copy_repo(tmp_path/'a copy')


@pytest.fixture(scope='session')
def once(tmp_path_factory):
    "once(name, make): a folder that `make` fills, once for all the processes that test side by side"
    top = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: top = top.parent
    def folder(name, make):
        with FileLock(top/f'{name}.lock'):
            if not (top/f'{name}.made').exists():
                (top/name).mkdir()
                make(top/name)
                (top/f'{name}.made').touch()
        return top/name
    return folder


def build(source, out):
    "sdist, and the wheel from it; without network, with the setuptools that is here"
    cmd = [sys.executable, '-m', 'build', '--outdir', str(out), str(source)]
    done = subprocess.run(cmd, cwd=source.parent, env=clean_env(PIP_RETRIES='1'), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    if done.returncode and any(text in done.stdout + done.stderr for text in NO_NETWORK): call(*cmd, '--no-isolation', cwd=source.parent)
    else: assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope='session')
def built(once):
    "(sdist, wheel), built in a copy so that the repository stays as it is"
    folder = once('build', lambda to: build(copy_repo(to/'a copy'), to/'dist'))
    (sdist,), (wheel,) = (folder/'dist').glob('*.tar.gz'), (folder/'dist').glob('*.whl')
    return sdist, wheel


@pytest.fixture(scope='session')
def user(built, tmp_path_factory):
    "A fresh environment with the wheel, outside the repository. torch and the rest are lent by this one's site-packages."
    folder = tmp_path_factory.mktemp('user')
    venv.create(folder/'venv', with_pip=False, symlinks=True)
    python = folder/'venv/bin/python'
    call(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-deps', '--no-index', built[1], cwd=folder)
    site = next((folder/'venv/lib').glob('python*/site-packages'))
    # only the folder goes on the path: the .pth file in it that leads to the repository is not read
    (site/'lent.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return folder


@pytest.fixture(scope='session')
def quick_report(once, user):
    "The report of a demo of a few seconds, made by the installed wheel outside of the repository"
    def make(folder): print(call(user/'venv/bin/vitnb', 'demo', '--quick', '--out', folder/'run', cwd=folder))
    return find_report(once('demo', make)/'run')


def find_report(folder):
    "The demo's report: the report.html nearest to the top of `folder`"
    reports = sorted(folder.rglob('report.html'), key=lambda p: len(p.parts))
    assert reports, f'no report.html under {folder}'
    return reports[0]


@pytest.fixture(scope='session')
def shots(tmp_path_factory):
    "Where screenshots go: the folder VITNB_SHOTS, else a temporary one"
    folder = Path(os.environ.get('VITNB_SHOTS') or tmp_path_factory.mktemp('shots'))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope='session')
def chromium():
    "Debian's Chromium; without it the test is skipped"
    return shutil.which('chromium') or shutil.which('chromium-browser') or pytest.skip('no chromium on this machine (Debian: apt install chromium)')


@pytest.fixture(scope='module')
def browser(chromium):
    "Chromium, headless and without a word to the network of its own accord"
    from playwright.sync_api import sync_playwright
    flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking ' \
            '--disable-component-update --disable-sync'
    with sync_playwright() as p:
        program = p.chromium.launch(executable_path=chromium, args=flags.split())
        yield program
        program.close()
