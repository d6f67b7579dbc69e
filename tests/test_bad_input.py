"Mistakes end in one clear line, status 2, and nothing half-written"
import errno, json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from vitnb.cli import main

FAST = ['--n-max', '200', '--epochs', '1', '--warmup-epochs', '0', '--batch-size', '32']


def pictures(root: Path, classes: dict[str, int], size=(40, 36)):
    "A folder of noisy pictures"
    random = np.random.RandomState(0)
    for name, count in classes.items():
        (root/name).mkdir(parents=True)
        for i in range(count): Image.fromarray(random.randint(0, 255, (*size, 3), dtype=np.uint8)).save(root/name/f'{i}.png')
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistake(capsys, *arguments: str) -> str:
    "Run a command that must fail, and return the one line that it says"
    status, said = main(arguments), capsys.readouterr()
    lines = [l for l in said.err.splitlines() if l.strip() and '%|' not in l]
    assert status == 2, (arguments, said)
    assert len(lines) == 1 and lines[0].startswith('vitnb: '), lines
    assert not Path('runs').exists(), 'something was left behind'
    return lines[0]


@pytest.mark.parametrize('arguments, words', [
    ('train vti', ["unknown method 'vti'", 'vit']),
    ('tarin vit', ["unknown command 'tarin'", 'train']),
    ('train vit --dataset mnist', ["unknown data set 'mnist'", 'fashion-mnist']),
    ('train vit --student huge', ["unknown preset 'huge'", 'nano']),
    ('train vit --rho 0.5', ['rho=0.5', 'below 1']),
    ('train vit --rho nan', ['rho=nan']),
    ('train vit --rho 100000', ['rho=100000', 'empty']),
    ('train vit --n-max 5000', ['1800', '5000', 'n_max']),
    ('train vit --patch-size 5', ['28', '5', '2, 4, 7, 14']),
    ('train vit --patch-size 0', ['28', '0']),
    ('train vit --batch-size 7', ['batch_size=7', 'even']),
    ('train vit --batch-size 100000', ['100000']),
    ('train vit --epochs 0', ['epochs=0']),
    ('train vit --lr nan', ['lr=nan']),
    ('train vit --optimiser adam', ["'adam'", 'adamw']),
    ('train vit --device tpu', ["'tpu'", 'cpu']),
    ('train vit --precision fp8', ["'fp8'", 'bf16']),
    ('train vit --order random', ["'random'", 'spread']),
    ('train vit --profile linear', ["'linear'", 'exp']),
    ('train vit --groups thirds', ["'thirds'", 'count']),
    ('train vit --val-fraction 0.7', ['val_fraction=0.7']),
    ('train deit-lt --drw-start 2', ['drw_start=2']),
    ('train deit-lt --beta 1', ['beta=1']),
    ('train deit-lt --order-seed 5', ['no teacher', 'vitnb train teacher']),
    ('train deit-lt --teacher nowhere', ['nowhere']),
    ('train teacher --depth 21', ['21', '6n+2']),
    ('report nowhere', ['nowhere', 'vitnb runs']),
    ('train vit --dataset imagefolder:nowhere', ['nowhere']),
])
def test_a_mistake_is_one_line(here, capsys, arguments, words):
    line = mistake(capsys, *arguments.split())
    for word in words: assert word in line, line


def test_folders_that_cannot_be_used(here, capsys):
    (here/'empty').mkdir()
    pictures(here/'one', {'cat': 2})
    pictures(here/'hollow', {'cat': 2}); (here/'hollow'/'dog').mkdir()
    for name, words in dict(empty='no sub-folders', one='one class only', hollow='no pictures').items():
        assert words in mistake(capsys, 'train', 'vit', '--dataset', f'imagefolder:{name}')


@pytest.mark.parametrize('damage, words', [
    (lambda f: f.write_bytes(b''), 'empty'),
    (lambda f: f.write_bytes(f.read_bytes()[:200]), 'truncated'),
    (lambda f: f.write_bytes(b'this is no picture'), 'cannot identify'),
])
def test_a_picture_that_cannot_be_read_is_named(here, capsys, damage, words):
    root = pictures(here/'pets', {'cat': 30, 'dog': 20})
    damage(root/'dog'/'3.png')
    train = ['train', 'vit', '--dataset', 'imagefolder:pets', '--image-folder-size', '32', '--epochs', '1', '--batch-size', '8', '--warmup-epochs', '0']
    line = mistake(capsys, *train)
    assert str(Path('pets/dog/3.png')) in line and words in line and '--skip-unreadable' in line, line
    assert main([*train, '--skip-unreadable', '--out', 'ok']) == 0
    assert str(Path('pets/dog/3.png')) in capsys.readouterr().out
    assert json.loads((here/'ok'/'status.json').read_text())['state'] == 'finished'
    assert (here/'ok'/'report.html').exists()


def test_a_run_folder_is_never_overwritten(here, capsys):
    (here/'mine').mkdir(); (here/'mine'/'thesis.txt').write_text('important')
    assert 'mine exists already' in mistake(capsys, 'train', 'vit', *FAST, '--out', 'mine')
    assert [f.name for f in (here/'mine').iterdir()] == ['thesis.txt']


def test_checkpoints_that_do_not_fit(here, capsys):
    assert main(['train', 'teacher', *FAST, '--depth', '8', '--out', 'teacher']) == 0
    whole = (here/'teacher'/'model.safetensors').read_bytes()
    capsys.readouterr()
    for name, content in dict(cut=whole[:len(whole) // 2], stub=whole[:5], zero=b'', lying=b'\xff' * 8 + whole[8:]).items():
        (here/f'{name}.safetensors').write_bytes(content)
        assert f'{name}.safetensors' in mistake(capsys, 'train', 'deit', *FAST, '--teacher', f'{name}.safetensors')
    pictures(here/'pets', {'cat': 30, 'dog': 20})
    line = mistake(capsys, 'train', 'deit', '--dataset', 'imagefolder:pets', '--image-folder-size', '32', '--batch-size', '8', '--teacher', 'teacher')
    assert '10 classes' in line and '2' in line
    assert main(['train', 'vit', *FAST, '--out', 'vit']) == 0
    capsys.readouterr()
    assert 'does not hold a teacher' in mistake(capsys, 'train', 'deit', *FAST, '--teacher', 'vit')


def test_no_space_left(here, capsys, monkeypatch):
    "The disk fills up while the weights of the second epoch are written"
    import vitnb.core
    real, calls = vitnb.core._to_disk, []
    def full(path):
        calls.append(path)
        if path.suffix == '.safetensors' and sum(p.suffix == '.safetensors' for p in calls) > 1: raise OSError(errno.ENOSPC, 'No space left on device')
        real(path)
    monkeypatch.setattr(vitnb.core, '_to_disk', full)
    status = main(['train', 'vit', *FAST, '--epochs', '3', '--out', 'run'])
    lines = [l for l in capsys.readouterr().err.splitlines() if l.strip() and '%|' not in l]
    assert status == 2 and len(lines) == 1 and 'no space left' in lines[0], lines
    assert json.loads((here/'run'/'status.json').read_text())['state'] == 'failed'
    assert not [f.name for f in (here/'run').iterdir() if f.name.startswith('.')], 'a temporary file was left'


def test_a_real_full_disk(here, capsys):
    "The same on a file system of one megabyte, where it can be mounted"
    (here/'small').mkdir()
    if os.name == 'nt' or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(here/'small')], capture_output=True).returncode:
        pytest.skip('cannot mount a small file system here')
    try:
        assert main(['train', 'vit', *FAST, '--out', 'small/run']) == 2
        assert 'no space left' in capsys.readouterr().err
        left = [f.name for f in (here/'small').rglob('*')]
        assert not any('safetensors' in name for name in left), left
    finally: subprocess.run(['umount', str(here/'small')])


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_ctrl_c_leaves_a_readable_run(here, capsys):
    process = subprocess.Popen([sys.executable, '-m', 'vitnb.cli', 'train', 'vit', '--n-max', '200', '--epochs', '500', '--out', 'run'],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = here/'run'/'metrics.jsonl'
    for _ in range(600):
        if lines.exists() and lines.read_text().count('\n') > 1: break
        time.sleep(.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and 'interrupted' in said and 'Traceback' not in said, said
    status = json.loads((here/'run'/'status.json').read_text())
    assert status['state'] == 'interrupted'
    assert all(json.loads(l) for l in lines.read_text().splitlines())
    assert main(['report', 'run']) == 0 and 'interrupted' in (here/'run'/'report.html').read_text()
    capsys.readouterr()
    assert main(['runs', '.']) == 0 and 'interrupted' in capsys.readouterr().out
