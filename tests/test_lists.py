"Files in the official forms: CIFAR's pickles as torchvision reads them, and the lists of ImageNet-LT and iNaturalist, tidy and not"
import errno, json, os, pickle, signal, subprocess, sys, threading, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from PIL import Image
from vitnb.core import UserError
from vitnb.data import lists
from vitnb.data.lists import LIST_SETS, ListImages, ListSet, open_prepared, prepare, read_list, read_lists, renumber_by_size
from vitnb.data.pixels import WAYS, open_pixels
from vitnb.data.sets import DataConfig, fingerprint, image_folder, load_images, long_tailed


# CIFAR --------------------------------------------------------------------------------------------------------------

def cifar_tree(root: Path, name: str, per_class=20):
    "A small CIFAR in the files that torchvision reads; returns pixels (N, 3, 32, 32) and labels of both parts"
    random, C = np.random.RandomState(0), int(name.removeprefix('cifar'))
    folder = root/('cifar-10-batches-py' if C == 10 else 'cifar-100-python')
    folder.mkdir(parents=True)
    def dump(file, content): (folder/file).write_bytes(pickle.dumps(content, protocol=2))
    def part(n):
        labels = random.permutation(np.arange(C * n) % C).tolist()
        return random.randint(0, 256, (C * n, 3072), dtype=np.uint8), labels
    key = 'labels' if C == 10 else 'fine_labels'
    train, test = part(per_class), part(2)
    files = [f'data_batch_{i}' for i in range(1, 6)] if C == 10 else ['train']
    step = len(train[1]) // len(files)
    for i, file in enumerate(files):
        some = slice(i * step, (i + 1) * step)
        dump(file, {'data': train[0][some], key: train[1][some], 'filenames': [f'{j}.png' for j in range(step)], 'batch_label': file}
             | ({'coarse_labels': [0] * step} if C == 100 else {}))
    dump('test_batch' if C == 10 else 'test', {'data': test[0], key: test[1]})
    names = [f'class {c}' for c in range(C)]
    if C == 10: dump('batches.meta', {'label_names': names, 'num_cases_per_batch': step, 'num_vis': 3072})
    else: dump('meta', {'fine_label_names': names, 'coarse_label_names': ['all']})
    return [(torch.from_numpy(pixels.reshape(-1, 3, 32, 32)), labels) for pixels, labels in (train, test)]


@pytest.fixture
def no_checksums(monkeypatch):
    "torchvision accepts any file that is there, and downloads nothing"
    monkeypatch.setattr('torchvision.datasets.cifar.check_integrity', lambda path, md5=None: os.path.isfile(path))
    monkeypatch.setattr('torchvision.datasets.cifar.download_and_extract_archive', no_network)


def no_network(*_, **__): raise OSError('no network')


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_files(name, tmp_path, no_checksums):
    expected, C = cifar_tree(tmp_path, name), int(name.removeprefix('cifar'))
    train, val, test = load_images(name, folder=str(tmp_path))
    assert val is None and train.class_names == tuple(f'class {c}' for c in range(C))
    for part, (pixels, labels) in zip((train, test), expected):
        assert part.images.dtype == torch.uint8 and torch.equal(part.images, pixels) and part.labels.tolist() == labels
    data = long_tailed(DataConfig(dataset=name, folder=str(tmp_path), rho=10, val_fraction=0))
    assert data.train.counts.tolist() == sorted(data.train.counts, reverse=True) and (data.train.counts[0], data.train.counts[-1]) == (20, 2)
    assert (data.channels, data.img_size, data.num_classes) == (3, 32, C)


def test_cifar_files_that_are_not_there(tmp_path, no_checksums):
    cifar_tree(tmp_path, 'cifar10')
    (tmp_path/'cifar-10-batches-py'/'data_batch_3').unlink()
    with pytest.raises(UserError, match='CIFAR10 is not in .* could not be downloaded'): load_images('cifar10', folder=str(tmp_path))
    with pytest.raises(UserError, match='CIFAR100 is not in'): load_images('cifar100', folder=str(tmp_path/'nowhere'))


def test_cifar_files_are_verified(tmp_path, monkeypatch):
    "Without the patch of the checksums, files that are not the original ones are refused"
    cifar_tree(tmp_path, 'cifar10')
    monkeypatch.setattr('torchvision.datasets.cifar.download_and_extract_archive', no_network)
    with pytest.raises(UserError, match='CIFAR10 is not in'): load_images('cifar10', folder=str(tmp_path))


# Lists --------------------------------------------------------------------------------------------------------------

def list_tree(root: Path, counts, test_per_class=2, inat=False):
    "Pictures and both lists, with the names and folders of ImageNet-LT or iNaturalist 2018"
    random, lines = np.random.RandomState(0), dict(train=[], test=[])
    for part in lines:
        for c, n in enumerate(counts if part == 'train' else [test_per_class] * len(counts)):
            folder = f'train_val2018/Some Birds/{c}' if inat else f'{"val" if part == "test" else part}/n{c:08}'
            (root/folder).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                name = f'{folder}/{part}_{i}.{"jpg" if inat else "JPEG"}'
                Image.fromarray(random.randint(0, 255, (20, 24, 3), dtype=np.uint8)).save(root/name)
                lines[part].append(f'{name} {c}\n')
    names = ('iNaturalist18_train.txt', 'iNaturalist18_val.txt') if inat else ('Imagenet_LT_train.txt', 'Imagenet_LT_test.txt')
    for name, text in zip(names, lines.values()): (root/name).write_text(''.join(text))
    return root/names[0], root/names[1]


@pytest.fixture
def tree(tmp_path): return tmp_path, *list_tree(tmp_path, (1, 4, 2, 4))


@pytest.mark.parametrize('inat', [False, True])
def test_official_form(tmp_path, inat, capsys):
    list_tree(tmp_path, (1, 4, 2, 4), inat=inat)
    known = LIST_SETS['inaturalist18' if inat else 'imagenet-lt']
    train, test, class_map = read_lists(ListSet(known.train_list, known.test_list, 4, 11, 8), tmp_path, tmp_path)
    assert class_map.tolist() == [3, 0, 2, 1] and train.counts.tolist() == [4, 4, 2, 1] and test.counts.tolist() == [2] * 4
    assert not capsys.readouterr().out
    for images in (train, test):    # the class a path names and the label it got
        original = [int(p.split('/')[-2].removeprefix('n')) for p in images.paths]
        assert (class_map[original] == images.labels).all()
    with pytest.raises(UserError, match=f'4 classes, not {known.num_classes}'): read_lists(known, tmp_path, tmp_path)
    assert ListImages(train, 16)[[0, 10]].shape == (2, 3, 16, 16)


def test_unverified_number_is_only_noted(tree, capsys):
    read_lists(ListSet('imagenet_lt_train.txt', 'imagenet_lt_test.txt', 4, 12, 8), tree[0], tree[0])
    assert 'has 11 pictures; papers quote 12' in capsys.readouterr().out


@pytest.mark.parametrize('change', [lambda t: t.replace('\n', '\r\n'), lambda t: '\ufeff' + t, lambda t: '\ufeff' + t.replace('\n', '\r\n'),
                                    lambda t: '\n\n' + t + '  \n', lambda t: t.rstrip('\n'), lambda t: t.replace(' ', '\t'), lambda t: t.replace('\n', '  \n')])
def test_harmless(tree, change):
    root, file, _ = tree
    before = read_list(file, root)
    file.write_bytes(change(file.read_text()).encode())
    after = read_list(file, root)
    assert after.paths == before.paths and (after.labels == before.labels).all()


@pytest.mark.parametrize('more, words', [
    ('train/no.JPEG 0\ntrain/n00000000/no.JPEG 0\n', ['2 of the 13', 'the first is train/no.JPEG']),
    ('train/x.JPEG zero\nx\n', ['line 12', "'zero'", '(and 1 more)']),
    ('train/x.JPEG\n', ['line 12', 'not a path and a label']),
    ('0\n', ['line 12', 'not a path and a label']),
    ('train/x.JPEG -3\n', ['line 12', 'negative']),
    ('train/x.JPEG 1_0\n', ['line 12', "'1_0'"]),
    ('train/x.JPEG ３\n', ['line 12', 'not a class number']),
    ('train/x.JPEG 1e9\n', ['line 12', "'1e9'"]),
    ('train/x.JPEG 999999999999999999999999\n', ['line 12', 'not a class number']),
    ('train/x.JPEG 999999999\n', ['no picture of class 4', '999999999']),
    ('train/x.JPEG 5\n', ['no picture of class 4 below']),
    ('/etc/passwd 0\n', ['line 12', 'leaves the folder']),
    ('../secret.JPEG 0\n', ['line 12', 'leaves the folder']),
    ('train/../../secret.JPEG 0\n', ['line 12', 'leaves the folder']),
    ('train\\..\\..\\secret.JPEG 0\n', ['line 12', 'leaves the folder']),
    ('C:/secret.JPEG 0\n', ['line 12', 'leaves the folder']),
    ('train/\0.JPEG 0\n', ['line 12', 'not readable text']),
    (f'{"x" * 5000}/y.JPEG 0\n', ['1 of the 12']),
    ('train/n00000000/train_0.JPEG 1\n', ['line 12', 'label 1 here and 0 before'])])
def test_bad_list(tree, more, words):
    root, file, _ = tree
    file.write_text(file.read_text() + more)
    with pytest.raises(UserError) as error: read_list(file, root)
    assert all(w in str(error.value) for w in [str(file), *words]), error.value
    assert '\n' not in str(error.value) and '\0' not in str(error.value)


@pytest.mark.parametrize('content, words', [(b'', 'empty'), (b'\n \r\n', 'empty'), (b'\xef\xbb\xbf', 'empty'), (b'\xff\xfea\0 \x000\0', 'not UTF-8'), (None, 'No such file')])
def test_no_list(tmp_path, content, words):
    if content is not None: (tmp_path/'l.txt').write_bytes(content)
    with pytest.raises(UserError, match=words): read_list(tmp_path/'l.txt', tmp_path)


def test_other_mistakes(tree):
    root, train, test = tree
    with pytest.raises(UserError, match='no folder'): read_list(train, root/'nowhere')
    with pytest.raises(UserError, match='line 7.*not below 3'): read_list(test, root, num_classes=3)
    with pytest.raises(UserError, match='no other.txt'): read_lists(ListSet(train.name, 'other.txt', 4, 11, 8), root, root)
    test.write_text(train.read_text())
    with pytest.raises(UserError, match='11 pictures are in both'): read_lists(ListSet(train.name, test.name, 4, 11, 11), root, root)


def test_path_with_spaces(tmp_path):
    (tmp_path/'a b').mkdir(); (tmp_path/'a b'/'c  d 7').touch(); (tmp_path/'ü\xa0.jpg').touch()
    (tmp_path/'l.txt').write_text('a b/c  d 7 1\nü\xa0.jpg 0\n', encoding='utf-8')
    found = read_list(tmp_path/'l.txt', tmp_path)
    assert found.paths == ('a b/c  d 7', 'ü\xa0.jpg') and found.labels.tolist() == [1, 0]


def test_ties_keep_their_order():
    counts = np.random.RandomState(0).randint(1, 6, 500)
    class_map = renumber_by_size(np.repeat(np.arange(500), counts))
    assert class_map.tolist() == np.argsort(sorted(range(500), key=lambda c: (-counts[c], c))).tolist()


# Pixels -------------------------------------------------------------------------------------------------------------

def test_unreadable_picture_is_named(tree):
    root, file, _ = tree
    images = read_list(file, root)
    (root/images.paths[5]).write_bytes(b'')
    with pytest.raises(UserError, match=images.paths[5]): ListImages(images, 16)[:]
    with pytest.raises(UserError, match=images.paths[5]): prepare(images, 16, root/'pixels', shard=2)
    assert sorted(f.name for f in (root/'pixels').glob('[!.]*')) == ['00000.npy', '00001.npy', 'about.json']   # what was whole stays
    assert ListImages(images, 16)[:5].shape == (5, 3, 16, 16)


def test_full_disk(tree, monkeypatch):
    root, file, _ = tree
    images = read_list(file, root)
    with monkeypatch.context() as m:
        m.setattr(np, 'save', lambda *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'No space left on device')))
        with pytest.raises(UserError, match='No space left'): prepare(images, 16, root/'pixels')
    assert [f.name for f in (root/'pixels').glob('[!.]*')] == ['about.json']
    with pytest.raises(UserError, match='run prepare again'): open_prepared(images, root/'pixels')
    assert torch.equal(prepare(images, 16, root/'pixels')[:], ListImages(images, 16)[:])


def test_killed_and_continued(tree):
    "A process that is killed while it decodes leaves whole files only, and another goes on from them"
    root, file, _ = tree
    code = f'''
import time
from vitnb.data import lists
slow = lists.decode
def decode(*a): time.sleep(.1); return slow(*a)
lists.decode = decode
images = lists.read_list({str(file)!r}, {str(root)!r})
lists.prepare(images, 16, {str(root/"pixels")!r}, shard=2, workers=1)'''
    process = subprocess.Popen([sys.executable, '-c', code])
    try:
        for _ in range(1200):
            if (root/'pixels'/'00001.npy').exists() or process.poll() is not None: break
            time.sleep(.05)
    finally: process.send_signal(signal.SIGKILL); process.wait()
    images, decoded = read_list(file, root), []
    assert not (root/'pixels'/'00005.npy').exists()
    original = lists.decode
    try:
        lists.decode = lambda *a: decoded.append(a) or original(*a)
        prepared = prepare(images, 16, root/'pixels', shard=2)
    finally: lists.decode = original
    assert 0 < len(decoded) <= 7
    assert torch.equal(prepared[:], ListImages(images, 16)[:])


@pytest.mark.parametrize('about', ['', '[]', '{}', 'null', '{"format": "vitnb pixels 1"}'])
def test_damaged_about(tree, about):
    root, file, _ = tree
    images = read_list(file, root)
    prepare(images, 16, root/'pixels')
    (root/'pixels'/'about.json').write_text(about)
    for again in (lambda: open_prepared(images, root/'pixels'), lambda: prepare(images, 16, root/'pixels')):
        with pytest.raises(UserError, match='pixels'): again()


def test_pickles_are_not_opened(tree):
    root, file, _ = tree
    images = read_list(file, root)
    prepare(images, 16, root/'pixels')
    np.save(root/'pixels'/'00000.npy', np.array([dict()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match='00000.npy is damaged'): open_prepared(images, root/'pixels')


def test_training_on_official_lists(tmp_path, monkeypatch, capsys):
    "The lists of a small tree in the official format, from the command line to the report, with and without decoded pixels"
    import json
    from vitnb.cli import main
    from vitnb.data.lists import LIST_SETS, ListSet
    random, lines = np.random.RandomState(0), dict(train=[], test=[])
    for part, counts in dict(train=(6, 20, 11), test=(2, 2, 2)).items():
        for c, n in enumerate(counts):
            (tmp_path/'pictures'/part/f'n{c}').mkdir(parents=True)
            for i in range(n):
                Image.fromarray(random.randint(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path/'pictures'/part/f'n{c}'/f'{i}.JPEG')
                lines[part].append(f'{part}/n{c}/{i}.JPEG {c}')
    (tmp_path/'lists').mkdir()
    for part, text in lines.items(): (tmp_path/'lists'/f'ImageNet_LT_{part}.txt').write_text('\n'.join(text) + '\n')
    monkeypatch.setitem(LIST_SETS, 'imagenet-lt', ListSet('ImageNet_LT_train.txt', 'ImageNet_LT_test.txt', 3, 37, 6))
    monkeypatch.chdir(tmp_path)
    common = ['train', 'vit', '--recipe', 'imagenet-lt', '--folder', 'pictures', '--lists', 'lists', '--student', 'nano', '--img-size', '32', '--patch-size', '8', '--repeats', '1',
              '--epochs', '1', '--batch-size', '16', '--accumulate', '2']
    assert main([*common, '--out', 'one']) == 0 and main([*common, '--prepared', 'pixels', '--out', 'two']) == 0
    data = json.loads((tmp_path/'one'/'config.json').read_text())['data']
    assert data['counts'] == [20, 11, 6] and data['class_names'] == ['class 1', 'class 2', 'class 0']       # by size
    assert (tmp_path/'one'/'model.safetensors').read_bytes() == (tmp_path/'two'/'model.safetensors').read_bytes()
    assert (tmp_path/'two'/'report.html').exists() and (tmp_path/'pixels'/'train'/'about.json').exists()
    (tmp_path/'pictures'/'train'/'n0'/'3.JPEG').unlink()
    capsys.readouterr()
    assert main([*common, '--out', 'three']) == 2 and 'n0/3.JPEG' in capsys.readouterr().err
    assert main([*common, '--dry-run']) == 0 and 'missing' in capsys.readouterr().out


def test_dry_run_of_the_papers_recipe(tmp_path, monkeypatch, capsys):
    "DeiT-LT on ImageNet-LT: what it would do, with the files and without them, and what is missing each time"
    import torchvision
    from vitnb.cli import main
    list_tree(tmp_path/'lt', (6, 20, 11))
    monkeypatch.chdir(tmp_path)
    def planned(*more):
        assert main(['train', 'deit-lt', '--recipe', 'imagenet-lt', '--dry-run', '--student', 'nano', '--img-size', '32', '--patch-size', '16', '--device', 'cpu', *more]) == 0
        said = capsys.readouterr().out.splitlines()
        return {line[:14].strip(): line[15:] for line in said}, [line[15:] for line in said if line.startswith('missing')]
    plan, missing = planned('--folder', 'lt', '--lists', 'nowhere')
    assert '115846 training images of 1000 classes' in plan['data'] and plan['batch'] == '128 × 16 accumulated = 2048'
    assert plan['epochs'].startswith('1400 of 115712 images, 3 views of 38570 images: 904 micro-batches, 57 updates')
    assert len(missing) == 2 and 'ImageNet_LT_train.txt' in missing[0] and '`vitnb train teacher --recipe imagenet-lt`' in missing[1]
    monkeypatch.setitem(LIST_SETS, 'imagenet-lt', ListSet('Imagenet_LT_train.txt', 'Imagenet_LT_test.txt', 3, 37, 6))
    small = ['--folder', 'lt', '--lists', 'lt', '--repeats', '1', '--batch-size', '8']
    plan, missing = planned(*small)
    assert '37 training images of 3 classes' in plan['data'] and 'beside mixing from epoch 1201 of 1400' in plan['last stage']
    assert len(missing) == 1 and '--recipe imagenet-lt' in missing[0]
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), 'teacher.pth')
    assert planned(*small, '--teacher', 'teacher.pth', '--map-targets')[1] == ['nothing: leave --dry-run out to begin']
    (tmp_path/'lt'/'train'/'n00000001'/'train_3.JPEG').unlink()
    plan, missing = planned(*small, '--teacher', 'teacher.pth')
    assert '37 training images' in plan['data'] and len(missing) == 1 and 'n00000001/train_3.JPEG' in missing[0]
    assert not (tmp_path/'runs').exists()


# Where pixels are kept ----------------------------------------------------------------------------------------------

def folder_of_pictures(root: Path, classes=dict(cat=40, dog=30, owl=20), size=(44, 36)) -> Path:
    "Noisy pictures, one of them noted as turned and one of them grey"
    random, turned = np.random.RandomState(0), Image.Exif()
    turned[0x112] = 6
    for name, count in classes.items():
        (root/name).mkdir(parents=True)
        for i in range(count):
            picture = Image.fromarray(random.randint(0, 255, (*size, 3), dtype=np.uint8))
            (picture.convert('L') if i == 3 else picture).save(root/name/f'{i}.png', **(dict(exif=turned) if i == 4 else {}))
    return root


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.setenv('VITNB_CACHE', str(tmp_path/'cache'))
    return folder_of_pictures(tmp_path/'pets')


@pytest.fixture
def decoded(monkeypatch):
    "The pictures that were decoded, as they are"
    seen, original = [], lists.decode
    monkeypatch.setattr(lists, 'decode', lambda path, *rest: seen.append(Path(path)) or original(path, *rest))
    return seen


def settings(root: Path, **more) -> DataConfig: return DataConfig(dataset=f'imagefolder:{root}', image_folder_size=16, **more)
def cache_files(root: Path) -> set[Path]: return set((root.parent/'cache').rglob('[0-9]*.npy'))


def test_three_ways_are_equal(pets):
    "Pixels, labels, statistics, split and checksum"
    first, *others = (long_tailed(settings(pets, pixels=way)) for way in ('memory', 'cache', 'stream'))
    assert isinstance(first.train.images, torch.Tensor) and all(isinstance(o.train.images, ListImages) for o in others)
    for other, word in zip(others, ('cache', 'whenever')):
        assert len(other.notes) == 1 and word in other.notes[0] and '90 pictures' in other.notes[0]
        assert (other.mean, other.std, other.groups) == (first.mean, first.std, first.groups)
        for part in ('train', 'val', 'test'):
            a, b = getattr(first, part), getattr(other, part)
            assert torch.equal(a.images, b.images[:]) and torch.equal(a.labels, b.labels) and fingerprint(a) == fingerprint(b)
    (pets/'dog'/'0.png').write_bytes((pets/'dog'/'0.png').read_bytes() + b' ')
    assert fingerprint(long_tailed(settings(pets, rho=None, val_fraction=0, pixels='stream')).train) != fingerprint(first.train)


def test_three_ways_train_alike(pets, capsys):
    "From the command line; no thread that decodes is left"
    from vitnb.cli import main
    common = ['train', 'vit', '--dataset', f'imagefolder:{pets}', '--image-folder-size', '16', '--patch-size', '8', '--student', 'nano', '--epochs', '2', '--batch-size', '16']
    weights = []
    for way in ('memory', 'cache', 'stream'):
        assert main([*common, '--pixels', way, '--out', str(pets.parent/f'run-{way}')]) == 0
        assert f'asked for by pixels={way}' in capsys.readouterr().out
        weights.append((pets.parent/f'run-{way}'/'model.safetensors').read_bytes())
    assert weights[0] == weights[1] == weights[2]
    assert not [t for t in threading.enumerate() if t.name.startswith('decoding ahead')]
    assert main(['train', 'vit', '--pixels', 'disk', '--dataset', f'imagefolder:{pets}']) == 2 and "'disk'" in capsys.readouterr().err
    assert main([*common, '--dry-run']) == 0 and 'decoded into memory' in capsys.readouterr().out


def test_the_second_start_only_opens(pets, decoded):
    image_folder(pets, 16, pixels='cache')
    assert len(decoded) == 90
    image_folder(pets, 16, pixels='cache')
    assert len(decoded) == 90
    image_folder(pets, 24, pixels='cache')
    assert len(decoded) == 180 and len(cache_files(pets)) == 2


def test_a_changed_picture_is_decoded_again(pets, decoded, monkeypatch):
    monkeypatch.setattr(lists, 'SHARD', 8)
    before, files = image_folder(pets, 16, pixels='cache').images[:], cache_files(pets)
    decoded.clear()
    Image.new('RGB', (30, 30), 'red').save(pets/'dog'/'7.png')
    after = image_folder(pets, 16, pixels='cache').images[:]
    assert len(decoded) == 8 and len(files) == len(cache_files(pets)) == 12 and len(files & cache_files(pets)) == 11
    changed = (before != after).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [image_folder(pets, 16).files.paths.index('dog/7.png')] and torch.equal(after, image_folder(pets, 16).images)
    decoded.clear()
    (pets/'dog'/'7.png').unlink()       # another list: another folder
    assert len(image_folder(pets, 16, pixels='cache')) == 89 and len(decoded) == 89


def run_python(code: str, **more) -> subprocess.Popen: return subprocess.Popen([sys.executable, '-c', code], text=True, **more)


SLOW = """
import time, sys
from pathlib import Path
from vitnb.data import lists
from vitnb.data.sets import image_folder
lists.SHARD, fast = 8, lists.decode
def decode(path, *rest):
    with open({log!r}, 'a') as f: f.write(f'{{path}}\\n')
    time.sleep(.02)
    return fast(path, *rest)
lists.decode = decode
"""


def test_two_processes_decode_once(pets, tmp_path):
    log = tmp_path/'log'
    code = SLOW.format(log=str(log)) + f"print(int(image_folder({str(pets)!r}, 16, pixels='cache').images[:].long().sum()))"
    running = [run_python(code, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert len(set(text.splitlines()[-1] for text in said)) == 1 and int(said[0].splitlines()[-1]) == int(image_folder(pets, 16).images.long().sum())
    assert len(log.read_text().splitlines()) == 90, 'something was decoded twice'
    assert not [f for f in (tmp_path/'cache').rglob('.*') if f.name != '.lock']


def test_killed_while_decoding(pets, tmp_path, decoded, monkeypatch):
    "Whole files stay, the temporary one is cleared away, and the lock is free"
    monkeypatch.setattr(lists, 'SHARD', 8)
    process = run_python(SLOW.format(log=str(tmp_path/'log')) + f"image_folder({str(pets)!r}, 16, pixels='cache')")
    try:
        for _ in range(1200):
            if len(cache_files(pets)) > 2 or process.poll() is not None: break
            time.sleep(.02)
    finally: process.send_signal(signal.SIGKILL); process.wait()
    there = cache_files(pets)
    assert 2 < len(there) < 12
    next((tmp_path/'cache').rglob('about.json')).with_name('.00009.npy.x.npy').write_bytes(b'half of a file')
    images = image_folder(pets, 16, pixels='cache').images
    assert len(decoded) == 90 - 8 * len(there) and there < cache_files(pets)
    assert torch.equal(images[:], image_folder(pets, 16).images)
    assert not [f for f in (tmp_path/'cache').rglob('.*') if f.name != '.lock']


@pytest.mark.parametrize('memory, disk, way', [(10**6, 0, 'memory'), (10**5, 10**6, 'cache'), (10**5, 80_000, 'stream'), (10**5, 0, 'stream')])
def test_the_way_follows_from_the_room(pets, memory, disk, way):
    "90 pictures of 768 bytes are 69 kB"
    files = image_folder(pets, 16).files
    found = open_pixels(files, 16, memory=memory, disk=disk)
    assert found.choice.way == way and torch.equal(found.images[:], image_folder(pets, 16).images)
    assert bool(cache_files(pets)) == (way == 'cache')
    assert 'free' in str(found.choice) and '0.1 MB' in str(found.choice) and '\n' not in str(found.choice)
    assert open_pixels(files, 16, memory=memory, disk=disk, now=False).choice == found.choice


def test_a_cache_folder_that_cannot_be_used(pets, monkeypatch, tmp_path):
    (tmp_path/'cache').write_text('a file')
    files = image_folder(pets, 16).files
    assert open_pixels(files, 16, memory=10**5, disk=0).choice.way == 'stream'       # nothing can be remembered, and nothing needs to be
    with pytest.raises(UserError, match='cache'): open_pixels(files, 16, way='cache')
    (tmp_path/'cache').unlink()
    monkeypatch.setattr('shutil.disk_usage', lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match='--pixels stream'): open_pixels(files, 16, way='cache')


@pytest.mark.parametrize('way', WAYS[1:])
@pytest.mark.parametrize('damage, words', [(lambda f: f.write_bytes(b''), 'empty'), (lambda f: f.write_bytes(b'text'), 'cannot identify'),
                                           (lambda f: (f.unlink(), f.symlink_to('gone.png')), 'link to a file that is not there')])
def test_a_bad_picture_is_named_at_the_start(pets, way, damage, words, capsys):
    damage(pets/'dog'/'7.png')
    for _ in range(2):      # the second time from memory
        with pytest.raises(UserError, match=f'dog/7.png.*{words}.*--skip-unreadable'): image_folder(pets, 16, pixels=way)
    for _ in range(2):
        left = image_folder(pets, 16, pixels=way, skip_unreadable=True)
        assert left.counts.tolist() == [40, 29, 20] and left.images.shape[0] == 89 and 'dog/7.png' in capsys.readouterr().out
    with pytest.raises(UserError, match='dog/7.png'): image_folder(pets, 16, pixels=way)      # also when it was passed over before
    (pets/'dog'/'7.png').unlink()
    Image.new('RGB', (30, 30)).save(pets/'dog'/'7.png')
    assert image_folder(pets, 16, pixels=way).counts.tolist() == [40, 30, 20] and not capsys.readouterr().out


def test_a_picture_that_is_cut_short(pets, capsys):
    "All ways skip it; a stream that does not skip finds it when the pixels are needed, and names it"
    whole = long_tailed(settings(pets, pixels='stream', val_fraction=0))
    name = next(p for p in whole.train.images.images.paths if p.startswith('dog/'))      # one to train on, whose pixels are needed for the mean
    file = pets/name
    file.write_bytes(file.read_bytes()[:-900])
    for way in ('memory', 'cache'):
        with pytest.raises(UserError, match=f'{name}.*truncated'): image_folder(pets, 16, pixels=way)
    lazy = image_folder(pets, 16, pixels='stream')
    with pytest.raises(UserError, match=f'{name}.*truncated'): lazy.images[:]
    with pytest.raises(UserError, match=f'{name}.*truncated'): long_tailed(settings(pets, pixels='stream', val_fraction=0))
    left = [image_folder(pets, 16, pixels=way, skip_unreadable=True) for way in WAYS[1:]]
    assert all(torch.equal(l.images[:], left[0].images) and fingerprint(l) == fingerprint(left[0]) for l in left) and len(left[0]) == 89
    assert capsys.readouterr().out.count('skipped') == 3


def test_a_class_of_bad_pictures_only(pets):
    for file in (pets/'owl').iterdir(): file.write_bytes(b'text')
    for way in WAYS[1:]:
        with pytest.raises(UserError, match='20.*more|19 more'): image_folder(pets, 16, pixels=way)
        with pytest.raises(UserError, match="no readable picture of class owl"): image_folder(pets, 16, pixels=way, skip_unreadable=True)


def test_prepared_pictures_that_were_repaired(tree):
    "Without times of change, what was passed over is tried again by a call that passes over nothing"
    root, file, _ = tree
    images = read_list(file, root)
    whole = (root/images.paths[5]).read_bytes()
    (root/images.paths[5]).write_bytes(b'')
    assert len(prepare(images, 16, root/'pixels', shard=2, skip_unreadable=True)) == 10
    with pytest.raises(UserError, match=images.paths[5]): prepare(images, 16, root/'pixels', shard=2)
    (root/images.paths[5]).write_bytes(whole)
    assert torch.equal(prepare(images, 16, root/'pixels', shard=2)[:], ListImages(images, 16)[:])


STREAM = """
import threading
from vitnb.data import lists
from vitnb.cli import main
fast = lists.decode
def decode(path, *rest):
    if {broken!r} and str(path).endswith({broken!r}) and len(threading.enumerate()) > 1 and open({log!r}).read().count('e') > 200: open(path, 'w').close()
    with open({log!r}, 'a') as f: f.write('e')
    return fast(path, *rest)
lists.decode = decode
open({log!r}, 'w').close()
status = main(['train', 'vit', '--dataset', {root!r}, '--image-folder-size', '16', '--patch-size', '8', '--student', 'nano', '--epochs', '500', '--batch-size', '16', '--pixels', 'stream', '--out', {out!r}])
print('status', status, sorted(t.name for t in threading.enumerate() if t.name.startswith('decoding ahead')))
"""


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('broken', ['', '3.png'])
def test_streaming_stops_cleanly(pets, tmp_path, broken):
    "On Ctrl-C, and when a picture is lost in the middle of training: with a word, and no thread stays"
    code = STREAM.format(log=str(tmp_path/'log'), root=f'imagefolder:{pets}', out=str(tmp_path/'run'), broken=broken)
    process = run_python(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = tmp_path/'run'/'metrics.jsonl'
    try:
        for _ in range(6000):
            if broken or process.poll() is not None or (lines.exists() and lines.read_text()): break
            time.sleep(.05)
        if not broken: process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally: process.kill()
    assert process.returncode == 0 and f'status {2 if broken else 130} []' in out, (process.returncode, out, err)
    assert 'Traceback' not in err and ('3.png: the file is empty' in err if broken else 'interrupted' in err), err
    assert json.loads((tmp_path/'run'/'status.json').read_text())['state'] == ('failed' if broken else 'interrupted')
