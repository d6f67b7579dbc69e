"`vitnb doctor` on folders as they are found: an answer or one line, never a traceback, and nothing is changed"
import os, shlex

import numpy as np
import pytest
from PIL import Image

from vitnb.cli import main


def picture(path, shade=None, size=(20, 20)):
    "A picture of noise, or of one shade"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(abs(hash(path.name)) % 2**31).randint(0, 255, (*size[::-1], 3), dtype=np.uint8) if shade is None else np.full((*size[::-1], 3), shade, np.uint8)
    Image.fromarray(pixels).save(path)


def two_classes(root, n=6):
    for name in ('cat', 'dog'):
        for i in range(n): picture(root/name/f'{name} {i}.png')


def state(root): return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(root.rglob('*')) if p.is_file()}


def doctor(capsys, *words):
    "(status, what was printed)"
    status = main(['doctor', *map(str, words), '--device', 'cpu'])
    out, err = capsys.readouterr()
    assert status in (0, 2) and 'Traceback' not in out + err
    if status == 2: assert len(err.strip().splitlines()) == 1, err
    return status, out + err


def spoil(root, how):
    two_classes(root)
    if how == 'unreadable': (root/'cat/cat 0.png').write_bytes(b'')
    if how == 'all unreadable in a class': [f.write_bytes(b'x') for f in (root/'cat').iterdir()]
    if how == 'one picture in a class': picture(root/'bird/only.png')
    if how == 'empty class': (root/'bird').mkdir()
    if how == 'odd names': picture(root/'ein Käfig; rm -rf "$HOME"'/'ü 1.png'); picture(root/'ein Käfig; rm -rf "$HOME"'/"it's.png")
    if how == 'all alike': [picture(f, 7) for f in root.rglob('*.png')]
    if how == 'one pixel': [picture(f, i, (1, 1)) for i, f in enumerate(root.rglob('*.png'))]
    if how == 'one long': picture(root/'cat/long.png', size=(3000, 2))
    if how == 'many formats':
        for ending, mode in (('gif', 'P'), ('bmp', 'L'), ('tif', 'I;16'), ('png', 'LA'), ('webp', 'RGBA'), ('jpg', 'CMYK'), ('tiff', 'F')):
            Image.fromarray(np.random.RandomState(3).randint(0, 255, (9, 9), dtype=np.uint8)).convert('L').convert(mode if mode != 'I;16' else 'I').save(root/f'dog/x.{ending}')
    if how == 'link in a circle': (root/'cat/loop').symlink_to(root)
    if how == 'link to nothing': (root/'cat/gone.png').symlink_to(root/'no such file.png')
    if how == 'a folder called x.png': (root/'cat/x.png').mkdir()
    if how == 'parts': [picture(root/f'{part}/{name}/{i}.png') for part in ('train', 'val') for name in 'ab' for i in range(4)]
    if how == 'parts that differ': [picture(root/f'{part}/{name}/{i}.png') for part, name in (('train', 'a'), ('train', 'b'), ('test', 'c')) for i in range(3)]


HOW = ['nothing', 'unreadable', 'all unreadable in a class', 'one picture in a class', 'empty class', 'odd names', 'all alike', 'one pixel', 'one long', 'many formats',
       'link in a circle', 'link to nothing', 'a folder called x.png', 'parts', 'parts that differ']


@pytest.mark.parametrize('how', HOW)
def test_any_folder(how, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('VITNB_CACHE', str(tmp_path/'cache')); monkeypatch.chdir(tmp_path)
    spoil(root := tmp_path/'photos', how)
    before = state(root)
    status, text = doctor(capsys, root)
    assert status == 0 and ('What to train' in text) == (how != 'all unreadable in a class'), text
    assert state(root) == before and {p.name for p in tmp_path.iterdir()} <= {'photos', 'cache'}
    for line in text.splitlines():
        if line.startswith('  vitnb'): shlex.split(line)      # can be given to a shell


@pytest.mark.parametrize('what', ['nowhere', 'file', 'empty', 'flat', 'one class', 'not text', 'a name', ''])
def test_nothing_to_look_at(what, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/'photos'
    if what == 'file': path.write_text('x')
    if what == 'empty': path.mkdir()
    if what == 'flat': picture(path/'a.png')
    if what == 'one class': [picture(path/'cat'/f'{i}.png') for i in range(3)]
    if what == 'not text': os.makedirs(os.fsencode(path/'cat') + b'\xff'); [picture(path/'dog'/f'{i}.png') for i in range(3)]
    status, text = doctor(capsys, what if what in ('a name', '') else path)
    assert status == 2 or what in ('one class', 'not text'), text


def test_report_is_the_only_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_classes(tmp_path/'photos')
    status, text = doctor(capsys, 'photos', '--report', 'said.txt')
    assert status == 0 and {p.name for p in tmp_path.iterdir()} == {'photos', 'said.txt'}
    assert (tmp_path/'said.txt').read_text('utf-8').strip() in text
    status, text = doctor(capsys, 'photos', '--report', tmp_path/'photos')      # a folder is no file
    assert status == 2
