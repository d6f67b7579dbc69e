"Mistakes end in one clear line, status 2, and nothing half-written"
import errno, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from vitnb.cli import main

FAST = ['--n-max', '200', '--epochs', '1', '--batch-size', '32']


def pictures(root: Path, classes: dict[str, int], size=(40, 36)):
    "A folder of noisy pictures"
    random = np.random.RandomState(0)
    for name, count in classes.items():
        (root/name).mkdir(parents=True)
        for i in range(count): Image.fromarray(random.randint(0, 255, (*size, 3), dtype=np.uint8)).save(root/name/f'{i}.png')
    return root


@pytest.fixture(scope='module')
def few():
    "The embedded images with every 20th of the test images: what is tested here does not depend on them"
    from vitnb.data.sets import fashion_mnist
    train, test = fashion_mnist()
    return train, test.subset(range(0, len(test), 20))


@pytest.fixture(autouse=True)
def few_test_images(few, monkeypatch): monkeypatch.setattr('vitnb.data.sets.fashion_mnist', lambda *_: few)


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
    ('demo --order-seed 5', ['class order 5', '--train-teacher']),
    ('demo --epochs 0', ['epochs=0']),
    ('train vit --rho 49 --n-max 49', ['rho', 'below 49']),
    ('train deit-lt --recipe cifar-lt', ["'cifar-lt'", 'cifar10-lt']),
    ('train deit-lt --recipe fashion-mnist-lt --epochs 0 --dry-run', ['epochs=0']),
    ('train vit --dataset imagefolder:nowhere --dry-run', ['nowhere']),
    ('train vit --dataset imagenet-lt', ['imagenet-lt', '--folder', '--lists']),
    ('train vit --dataset imagenet-lt --folder a --lists b --prepared c --pixels stream', ['--pixels stream', '--prepared']),
    ('train vit --pixels disk', ["'disk'", 'memory, cache, stream']),
    ('train vit --sampler tail', ["'tail'", 'square-root']),
    ('train vit --repeats 0', ['repeats=0']),
    ('train vit --sampler class --repeats 3', ['repeats=3', 'class']),
    ('train vit --img-size 56', ['28 px', '56 px', '--crop resized']),
    ('train vit --loss ldam', ["'ldam'", 'balanced-softmax']),
    ('train teacher --loss ldma', ["'ldma'", 'ldam']),
    ('train paco --accumulate 2', ['accumulate=2', 'batch_size']),
    ('train paco --mixup 0.8', ['PaCo', 'one label']),
    ('train teacher --mixup 0.8', ['ldam', 'one label']),
    ('train teacher --network resnet51', ['resnet51']),
    ('train teacher --schedule linear', ["'linear'", 'steps']),
    ('train teacher --network inception_v3 --loss ce', ['inception_v3', '28 px']),
    ('train deit --teacher-sees nothing', ["'nothing'", 'clean']),
    ('train deit --teacher-family resnet', ["'resnet'", 'ldam']),
    ('train deit-lt --rho 0.5 --dry-run', ['rho=0.5', 'below 1']),
    ('train deit-lt --n-max 99999 --dry-run', ['1800', 'n_max']),
    ('train deit-lt --dataset cifar10 --n-max 99999 --dry-run', ['4500', 'n_max']),
    ('train deit-lt --dataset mnist --dry-run', ["unknown data set 'mnist'"]),
    ('train deit-lt --student huge --dry-run', ["unknown preset 'huge'"]),
    ('train teacher --deferred sampler --repeats 3 --dry-run', ['repeats=3', 'class']),
    ('train deit-lt --recipe fashion-mnist-lt --order-seed 5', ['vitnb train teacher --recipe fashion-mnist-lt']),
    ('train vit --subset-seed -1', ['subset_seed=-1']),
    ('train vit --order-seed -1', ['order_seed=-1']),
    ('train vit --dataset imagefolder:pets --order-seed 3 --profile step', ['profile=step and order_seed=3', 'rho']),
    ('train vit --dataset imagefolder:pets --order random', ['random', 'spread']),
    ('train vit --ema-decay 1', ['ema_decay=1', '0.9999']),
    ('train vit --rand-reading lanczos', ['lanczos', 'bicubic']),
    ('train vit --seed 99999999999999999999', ['seed=9']),
    ('train vit --pad -1', ['pad=-1']),
    ('train vit --erase 5', ['erase=5', 'between 0 and 1']),
    ('train vit --smoothing 2', ['smoothing=2']),
    ('train vit --drop-path 2', ['drop_path=2']),
    ('train deit --alpha 5', ['alpha=5']),
    ('train teacher --momentum -1', ['momentum=-1']),
    ('train vit --device auto:1', ["'auto:1'", 'cpu']),
    ('train vit --device cuda:77', ['cuda:77', 'cpu']),
    (f'train vit --n-max 200 --batch-size 32 --out {"a" * 300}', ['cannot make the run folder', 'too long']),
    ('train vit --dataset imagefolder:x --image-folder-size 1', ['image_folder_size=1']),
    ('runs nowhere', ['nowhere']),
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


@pytest.mark.parametrize('way', ['memory', 'cache', 'stream'])
@pytest.mark.parametrize('damage, words', [
    (lambda f: f.write_bytes(b''), 'empty'),
    (lambda f: f.write_bytes(f.read_bytes()[:200]), 'truncated'),
    (lambda f: f.write_bytes(b'this is no picture'), 'cannot identify'),
])
def test_a_picture_that_cannot_be_read_is_named(here, capsys, monkeypatch, damage, words, way):
    monkeypatch.setenv('VITNB_CACHE', str(here/'cache'))
    root = pictures(here/'pets', {'cat': 30, 'dog': 20})
    damage(root/'dog'/'3.png')
    train = ['train', 'vit', '--dataset', 'imagefolder:pets', '--image-folder-size', '32', '--epochs', '1', '--batch-size', '8', '--warmup-epochs', '0', '--pixels', way]
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
    assert main(['train', 'deit', *FAST, '--teacher', 'vit', '--out', 'taught']) == 0      # a student may teach too
    assert 'ViT of width 96' in capsys.readouterr().out
    line = mistake(capsys, 'train', 'deit', *FAST, '--teacher', 'vit', '--teacher-size', '56')
    assert '56 px' in line and 'cannot answer' in line
    assert main(['train', 'deit', *FAST, '--teacher', 'vit', '--teacher-normalisation', 'own', '--epochs', '1', '--out', 'own']) == 0
    capsys.readouterr()
    assert main(['train', 'deit', *FAST, '--teacher', 'nowhere', '--dry-run']) == 0      # only the teacher is missing: the rest of the plan stands
    said = capsys.readouterr().out
    assert 'missing        there is no file nowhere' in said and 'without the teacher' in said


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
    assert 'go on with `vitnb resume run`' in said
    (here/'run'/'model.safetensors').unlink(missing_ok=True)
    for words in (['export', 'run', 'x.onnx'], ['train', 'deit', *FAST, '--teacher', 'run', '--out', 'pupil']):
        assert main(words) == 2 and 'vitnb resume run' in capsys.readouterr().err, words


def test_a_demo_that_cannot_start_leaves_nothing(here, capsys):
    (here/'data').write_text('a file')
    assert main(['demo', '--quick', '--out', 'data/demo']) == 2
    assert capsys.readouterr().err.count('\n') == 1 and [f.name for f in here.iterdir()] == ['data']


DAMAGE = {'config.json': [b'', b'[]', b'{"method": 1}', b'\xff\xfe', b'{"method": "vit", "config": {}}'], 'status.json': [b'', b'null', b'{"state": []}'],
          'metrics.jsonl': [b'nonsense\n', b'\xff\n', b'[]\n'], 'predictions.npz': [b'', b'PK\x03\x04']}

def test_a_damaged_run_is_named(here, capsys):
    assert main(['train', 'vit', *FAST, '--out', 'all/run']) == 0
    capsys.readouterr()
    for name, contents in DAMAGE.items():
        whole = (here/'all/run'/name).read_bytes()
        for content in [*contents, whole[:len(whole) // 2]]:
            (here/'all/run'/name).write_bytes(content)
            if name == 'metrics.jsonl' and not content.endswith(b'\n'): continue     # a line that is being written is left out
            line = mistake(capsys, 'report', 'all/run')
            assert name in line, line
            assert main(['runs', 'all']) == 0
            assert ('damaged' in capsys.readouterr().out) == (name != 'predictions.npz')
        (here/'all/run'/name).write_bytes(whole)
    assert main(['report', 'all/run']) == 0


def test_untidy_folders(here, capsys):
    root = pictures(here/'pets', {'cat': 12, 'dog': 12})
    train = ['train', 'vit', '--image-folder-size', '32', '--epochs', '1', '--batch-size', '4', '--dataset']
    os.symlink('gone.png', root/'dog'/'link.png')
    assert 'link to a file that is not there' in mistake(capsys, *train, 'imagefolder:pets')
    (root/'dog'/'link.png').unlink()
    os.mkdir(os.fsencode(root) + b'/sch\xf6n')
    Image.new('RGB', (8, 8)).save(os.fsencode(root) + b'/sch\xf6n/0.png')
    assert 'not readable text' in mistake(capsys, *train, 'imagefolder:pets')


def test_a_class_may_be_called_train(here):
    from vitnb.data.sets import DataConfig, long_tailed
    pictures(here/'vehicles', {'train': 10, 'val': 10, 'car': 10})
    data = long_tailed(DataConfig(dataset='imagefolder:vehicles', image_folder_size=16))
    assert data.train.class_names == ('car', 'train', 'val') and len(data.test) == 6 and len(data.train) == 21
    for part, count in dict(train=6, val=2, test=3).items(): pictures(here/'split'/part, {'cat': count, 'dog': count})
    data = long_tailed(DataConfig(dataset='imagefolder:split', image_folder_size=16))
    assert [len(p) for p in (data.train, data.val, data.test)] == [12, 4, 6]


def test_the_test_part_of_a_folder_never_changes(here):
    from vitnb.data.sets import DataConfig, fingerprint, long_tailed
    pictures(here/'pets', {'cat': 30, 'dog': 20})
    tests = {fingerprint(long_tailed(DataConfig(dataset='imagefolder:pets', image_folder_size=16, subset_seed=seed, val_fraction=share)).test)
             for seed, share in ((0, .1), (1, .1), (0, .3), (0, 0))}
    assert len(tests) == 1


def test_a_teacher_of_other_classes_is_refused(here, capsys):
    sizes = ['--image-folder-size', '16', '--batch-size', '8', '--epochs', '1']
    pictures(here/'pets', {'cat': 30, 'dog': 20}); pictures(here/'more', {'dog': 30, 'wolf': 20})
    assert main(['train', 'teacher', '--depth', '8', *sizes, '--dataset', 'imagefolder:pets', '--out', 'teacher']) == 0
    capsys.readouterr()
    line = mistake(capsys, 'train', 'deit', *sizes, '--dataset', 'imagefolder:more', '--teacher', 'teacher')
    assert "'cat'" in line and "'dog'" in line
    assert main(['train', 'deit', *sizes, '--dataset', 'imagefolder:pets', '--n-max', '10', '--teacher', 'teacher', '--out', 'student']) == 0
    assert 'other images' in capsys.readouterr().out
    facts = json.loads((here/'student'/'config.json').read_text())['model']['teacher']
    assert len(facts['sha256']) == 64 and not facts['same_images']
    assert 'learned from other images' in (here/'student'/'report.html').read_text()


def test_what_is_no_run_and_a_run_beside_itself(here, capsys):
    (here/'notes.txt').write_text('x')
    assert 'notes.txt is a file, no run folder' in mistake(capsys, 'report', 'notes.txt')
    main(['train', 'vit', *FAST, '--out', 'mine']); capsys.readouterr()
    assert 'with itself' in mistake(capsys, 'compare', 'mine', 'mine')
    assert main(['compare', 'mine', 'mine', '--heads', 'cls', 'dist']) == 0
    assert 'one of each' in mistake(capsys, 'compare', 'mine', 'mine', '--heads', 'cls', 'dist', 'avg')


def test_two_methods_over_seeds(here, capsys):
    def as_seed(name, seed):      # the run of seed 1 once more, as if it had been another's
        shutil.copytree(here/'all'/name/'1', here/'all'/name/str(seed))
        path = here/'all'/name/str(seed)/'config.json'
        written = json.loads(path.read_text())
        written['config']['seed'] = seed
        path.write_text(json.dumps(written))
    for name, options in (('plain', []), ('balanced', ['--loss', 'balanced-softmax'])):
        main(['train', 'vit', *FAST, *options, '--seed', '1', '--out', f'all/{name}/1'])
        as_seed(name, 2)
    capsys.readouterr()
    assert main(['compare', 'all/plain', 'all/balanced']) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split()[:2] == ['plain', 'balanced'] and [l.split()[0] for l in said.splitlines()[1:5]] == ['overall', 'head', 'mid', 'tail'] and '2 pairs' in said and 'left out' not in said
    as_seed('plain', 3)
    assert main(['compare', 'all/plain', 'all/balanced']) == 0 and 'without a partner of the same seeds: all/plain/3' in capsys.readouterr().out.replace('\\', '/')
    assert '1 pair of finished runs' in mistake(capsys, 'compare', 'all/plain/1', 'all/balanced')
    assert '0 pairs' in (said := mistake(capsys, 'compare', 'all/plain/3', 'all/balanced')) and 'all/balanced/2' in said.replace('\\', '/')
    assert 'have the same seeds' in mistake(capsys, 'compare', 'all', 'all/plain')
    (here/'links').mkdir()
    for seed in '12': (here/'links'/seed).symlink_to(here/'all'/'balanced'/seed)
    assert main(['compare', 'all/plain', 'links']) == 0 and '2 pairs' in capsys.readouterr().out
    assert 'is in both folders' in mistake(capsys, 'compare', 'links', 'all/balanced')
    (here/'empty').mkdir()
    assert 'empty' in mistake(capsys, 'compare', 'empty', 'all/plain')


@pytest.mark.skipif(os.name == 'nt', reason='pipes')
def test_a_reader_that_goes_away(here):
    for command in ('--help', 'runs'):
        done = subprocess.run(f'{sys.executable} -m vitnb.cli {command} | true', shell=True, capture_output=True, text=True)
        assert 'Traceback' not in done.stderr and 'BrokenPipe' not in done.stderr, done.stderr


@pytest.mark.skipif(os.name == 'nt', reason='pipes')
def test_a_training_outlives_its_reader(here):
    done = subprocess.run(f'{sys.executable} -m vitnb.cli train vit {" ".join(FAST)} --patch-size 14 --out piped | true', shell=True, capture_output=True, text=True)
    assert 'Traceback' not in done.stderr and json.loads((here/'piped'/'status.json').read_text())['state'] == 'finished', done.stderr
    assert (here/'piped'/'report.html').exists()


def test_settings_that_would_do_nothing_or_cannot_be_done_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path/'pets', dict(cats=20, dogs=10))
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('CXX', 'no-compiler')
    folder = ['--dataset', 'imagefolder:pets', '--image-folder-size', '28', '--batch-size', '8', '--epochs', '1']
    for options, said in ((['--cutout', '3'], 'cutout=3'), (['--compile', 'on'], 'a C++ compiler is missing here'), ([*folder, '--order', 'shuffle'], 'order=shuffle'),
                          (['--dataset', 'imagefolder:~nobody-of-this-name/pets'], 'home directory'),
                          (['--dataset', 'imagefolder:' + os.fsdecode(b'caf\xe9')], 'is not text'), ([*folder, '--out', os.fsdecode(b'caf\xe9')], 'is not text')):
        assert main(['train', 'vit', '--n-max', '60', '--rho', '10', *options] if '--dataset' not in options else ['train', 'vit', *options]) == 2
        assert said in capsys.readouterr().err and not (tmp_path/'runs').exists(), options


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='pipes')
def test_a_pipe_among_pictures_is_passed_over(tmp_path):
    from vitnb.data.sets import DataConfig, long_tailed
    os.mkfifo(pictures(tmp_path/'pets', dict(cats=20, dogs=10))/'cats'/'zz.png')
    data = long_tailed(DataConfig(f'imagefolder:{tmp_path/"pets"}', image_folder_size=28, pixels='stream'))
    assert len(data.train) + len(data.val) + len(data.test) == 30
    empty = data.test.subset(range(0))
    assert [part.shape for part in empty.images.split(4)] == [(0, 3, 28, 28)]


@pytest.mark.parametrize('settings, words', [(dict(teacher=Path('runs/one')), ['teacher', 'str']), (dict(epochs='1'), ['epochs', 'int']), (dict(seed=np.int64(1)), ['seed', 'int']), (None, ['no settings', 'ViT(epochs=40)'])])
def test_settings_of_the_wrong_kind_in_python(tmp_path, settings, words):
    from vitnb.core import UserError
    from vitnb.methods.deit import DeiT
    from vitnb.training.train import train
    with pytest.raises(UserError) as e: train(DeiT if settings is None else DeiT(**settings), 'deit', tmp_path/'run', quiet=True)
    assert all(word in str(e.value) for word in words) and not (tmp_path/'run').exists()


def test_numbers_of_numpy_are_numbers(tmp_path):
    from vitnb.data.sets import DataConfig
    from vitnb.methods.vit import ViT
    from vitnb.training.train import train
    run = train(ViT(data=DataConfig(n_max=60, rho=10), epochs=1, batch_size=32, student='nano', patch_size=14, lr=np.logspace(-3, -2, 3)[0]), 'vit', tmp_path/'run', quiet=True)
    assert run.config['config']['lr'] == .001


def test_one_damaged_run_does_not_hide_the_others(tmp_path, capsys):
    good = dict(config=dict(method='vit', config=dict(epochs=1, seed=0, data=dict(dataset='x')), data=dict(class_names=['a'], counts=[3], fingerprint='', mean=[.5], std=[.5], groups=dict(head=[0], mid=[], tail=[], rule=''))),
                status=dict(state='finished', started='2026-01-01T00:00:00', seconds=3, test=dict(avg=dict(overall=50., head=50., mid=None, tail=None))))
    for name, status, data in (('good', {}, {}), ('test', dict(test=5), {}), ('overall', dict(test=dict(avg=dict(overall='a'))), {}), ('counts', {}, dict(counts=['a'])), ('none', {}, dict(counts=[]))):
        (folder := tmp_path/'runs'/name).mkdir(parents=True)
        (folder/'config.json').write_text(json.dumps(good['config'] | dict(data=good['config']['data'] | data)))
        (folder/'status.json').write_text(json.dumps(good['status'] | status))
    assert main(['runs', str(tmp_path/'runs')]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6 and sum('damaged' in line.split() for line in said) == 4 and any('good' in line and '50.0' in line for line in said)
