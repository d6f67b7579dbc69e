"The wheel, as a user gets it: what is in it, and that it works outside the repository"
import shlex, statistics, tarfile, time, zipfile
from pathlib import Path

from conftest import ROOT, call, repo_files

IN_WHEEL = {'.npz', '.npy', '.json', '.jsonl', '.csv', '.safetensors', '.txt', '.md'}
DATA = [n for n in repo_files() if n.startswith('data/')]


def test_wheel_holds_the_package_and_its_data(built):
    with zipfile.ZipFile(built[1]) as z:
        names = set(z.namelist())
        code = {n: z.read(n).decode() for n in names if n.endswith('.py')}
        metadata = z.read(next(n for n in names if n.endswith('.dist-info/METADATA'))).decode()
    print(f'wheel: {built[1].stat().st_size / 1e6:.1f} MB, {len(names)} files')
    wanted = {n for n in repo_files() if n.startswith('vitnb/') and n.endswith('.py')}
    wanted |= {f'vitnb/_data/{n[5:]}' for n in DATA if Path(n).suffix in IN_WHEEL or Path(n).name.startswith('LICENSE')}
    assert not wanted - names
    assert any(n.startswith('vitnb/_data/fashion_mnist/') and n.endswith('.npz') for n in names)
    assert not [n for n in names if n.endswith('.ipynb') or not n.startswith(('vitnb/', 'vitnb-'))]
    licences = {n.partition('.dist-info/licenses/')[2] for n in names if '.dist-info/licenses/' in n}
    assert licences == {'LICENSE', *(n for n in DATA if Path(n).name.startswith('LICENSE'))}
    assert 'License-Expression: Apache-2.0 AND MIT' in metadata and 'vitnb/py.typed' in names
    assert all(f'Provides-Extra: {extra}\n' in metadata for extra in ('lab', 'app', 'export', 'dev')) and 'Python :: 3.13' in metadata
    plain = [line for line in metadata.splitlines() if line.startswith('Requires-Dist') and 'extra ==' not in line]
    assert not [line for line in plain if 'nbdev' in line or 'fastcore' in line]
    assert not [n for n, text in code.items() for line in text.splitlines() if line.split()[:1] in (['import'], ['from']) and
                line.split()[1].split('.')[0] in ('nbdev', 'fastcore')]


def test_sdist_holds_the_data_and_its_makers(built):
    with tarfile.open(built[0]) as t: names = {n.partition('/')[2] for n in t.getnames()}
    assert not {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'CITATION.cff', 'CHANGELOG.md', 'vitnb/py.typed', *DATA} - names
    assert not [n for n in names if n.startswith('tests/')]


def test_package_comes_from_the_wheel(user):
    code = 'import vitnb, vitnb.core as c, pathlib; print(pathlib.Path(vitnb.__file__).parent); print(vitnb.__version__)'
    folder, version = call(user/'venv/bin/python', '-c', code, cwd=user).split()
    assert Path(folder).resolve().is_relative_to(user.resolve()) and not Path(folder).is_relative_to(ROOT)
    assert list(Path(folder).glob('_data/fashion_mnist/*.npz'))
    assert f'version = {version}\n' in (ROOT/'settings.ini').read_text('utf-8')


def test_command_starts_without_torch(user):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        text = call(user/'venv/bin/vitnb', '--help', cwd=user)
        seconds.append(time.perf_counter() - start)
    print(f'vitnb --help: {statistics.median(seconds):.2f} s')
    assert 'usage: vitnb' in text
    call(user/'venv/bin/python', '-c', 'import sys, vitnb.cli; sys.exit("torch" in sys.modules)', cwd=user)


def test_demo_runs_outside_the_repository(quick_report):
    assert '<html' in quick_report.read_text('utf-8')[:500] and not quick_report.is_relative_to(ROOT)


MAKE_FOLDER = """
from pathlib import Path
import torch
from PIL import Image
from vitnb.data.sets import fashion_mnist
images, _ = fashion_mnist()
for c, n in ((7, 60), (1, 30), (8, 12)):
    folder = Path('my photos')/images.class_names[c]
    folder.mkdir(parents=True)
    for i, k in enumerate(torch.where(images.labels == c)[0][:n]): Image.fromarray(images.images[k, 0].numpy()).save(folder/f'{i}.png')
(Path('my photos')/'sneaker/3.png').write_bytes(b'')
(Path('my photos')/'bag/0.png').write_bytes((Path('my photos')/'trouser/0.png').read_bytes())
"""


def test_own_images_from_an_empty_folder(user):
    "A folder with spoiled files, then what `vitnb doctor` says, word by word but for the number of epochs"
    home = user/'empty folder'
    home.mkdir()
    call(user/'venv/bin/python', '-c', MAKE_FOLDER, cwd=home)
    said = call(user/'venv/bin/vitnb', 'doctor', 'my photos', cwd=home)
    assert 'unreadable' in said and 'in two classes' in said and 'sneaker/3.png' in said
    commands = [shlex.split(line) for line in said.splitlines() if line.startswith('  vitnb ')]
    assert [c[1] for c in commands] == ['train', 'train', 'train', 'compare', 'report', 'export']
    for words in commands:
        if '--epochs' in words: words[words.index('--epochs') + 1] = '2'
        call(user/'venv/bin'/words[0], *words[1:], cwd=home)
    assert (home/commands[-1][-1]).exists() and '<html' in (home/'runs/my-deit-lt/report.html').read_text('utf-8')[:500]
