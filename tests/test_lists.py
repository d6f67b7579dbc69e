"Files in the official forms: CIFAR's pickles as torchvision reads them, and the lists of ImageNet-LT and iNaturalist, tidy and not"
import errno, os, pickle, signal, subprocess, sys, time
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from vitnb.core import UserError
from vitnb.data import lists
from vitnb.data.lists import LIST_SETS, ListImages, ListSet, open_prepared, prepare, read_list, read_lists, renumber_by_size
from vitnb.data.sets import DataConfig, load_images, long_tailed


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
    assert sorted(f.name for f in (root/'pixels').iterdir()) == ['00000.npy', '00001.npy', 'about.json']   # what was whole stays
    assert ListImages(images, 16)[:5].shape == (5, 3, 16, 16)


def test_full_disk(tree, monkeypatch):
    root, file, _ = tree
    images = read_list(file, root)
    with monkeypatch.context() as m:
        m.setattr(np, 'save', lambda *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, 'No space left on device')))
        with pytest.raises(UserError, match='No space left'): prepare(images, 16, root/'pixels')
    assert [f.name for f in (root/'pixels').iterdir()] == ['about.json']
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
