"Two hundred hostile settings, folders and checkpoints: each ends in one clear line, none in a traceback, and nothing is written outside of the run"
import json, os, shutil, string
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from vitnb.cli import main
from vitnb.data.sets import DataConfig
from vitnb.methods.vit import ViT
from vitnb.training import train as module

NUMBERS = st.one_of(st.just(float('nan')), st.just(float('inf')), st.just(-float('inf')), st.integers(-10**30, -1), st.integers(10**12, 10**30), st.floats(-1e300, -1e-9), st.just(0), st.just(-1))
TEXTS = st.one_of(st.sampled_from(['', '../../etc/passwd', '/etc/passwd', '..', '.', 'imagefolder:..', 'imagefolder:/proc/self', 'timm:../../x', 'a\x00b', '\n', '<script>', '%s%n', '\u202e', 'cuda:99', "'; rm -rf"]),
                  st.text(string.printable, max_size=30))
ODD = st.one_of(NUMBERS, TEXTS, st.none(), st.booleans(), st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
HOSTILE = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


class Reached(Exception): "The settings were accepted: what they ask for would begin now"


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run that was stopped, with a state to go on from"
    here = tmp_path_factory.mktemp('hostile')
    keep = module.keep_state
    def once(t):
        keep(t)
        raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'keep_state', once)
        with pytest.raises(KeyboardInterrupt):
            module.train(ViT(data=DataConfig(n_max=60, rho=10), epochs=2, batch_size=32, patch_size=14, save_every=0), 'vit', here/'runs'/'good', quiet=True)
    return here


@pytest.fixture
def no_training(monkeypatch):
    "Stop where training would begin"
    def reached(*arguments, **options): raise Reached
    monkeypatch.setattr(module, 'go_on', reached)


def files(folder: Path) -> dict:
    return {str(f.relative_to(folder)): (f.stat().st_size, f.stat().st_mtime_ns) for f in folder.rglob('*') if f.is_file()}


def one_line(here: Path, capsys, *arguments: str, inside: str = 'runs/bad') -> str:
    "Run a command that may be accepted or refused, but not fail; what it said"
    before, home = files(here), os.getcwd()
    capsys.readouterr()
    os.chdir(here)
    try: status = main(list(arguments))
    except Reached: return ''
    except SystemExit as e: status = e.code      # the option parser's own message
    finally: os.chdir(home)
    said = capsys.readouterr()
    assert status in (0, 2) and 'Traceback' not in said.err + said.out, (status, said)
    if status == 2 and said.err.startswith('vitnb: '): assert len(said.err.splitlines()) == 1 and len(said.err) < 1000, said.err
    changed = {name for name, facts in files(here).items() if before.get(name) != facts and not name.startswith(inside)}
    assert not changed, changed
    return said.err


def places(content, path=()):
    "Every place of nested JSON"
    yield path
    if isinstance(content, dict):
        for key, value in content.items(): yield from places(value, (*path, key))


def test_settings_of_a_run(run, no_training, capsys):
    content = json.loads((run/'runs/good/config.json').read_text())
    everywhere = [p for p in places(content) if p and p[0] in ('config', 'method', 'machine', 'data')]
    refused, bad = [], run/'runs/bad'

    @settings(HOSTILE, max_examples=80)
    @given(st.sampled_from(everywhere), ODD)
    def attempt(place, value):
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(run/'runs/good', bad)
        changed = json.loads((bad/'config.json').read_text())
        target = changed
        for key in place[:-1]: target = target[key]
        target[place[-1]] = value
        (bad/'config.json').write_text(json.dumps(changed))
        refused.append(bool(one_line(run, capsys, 'resume', 'runs/bad')))
    attempt()
    assert len(refused) >= 80 and sum(refused) > 40


def test_options(run, no_training, capsys):
    import dataclasses
    from vitnb.methods.registry import methods
    names = {name: [f'--{f.name.replace("_", "-")}' for f in dataclasses.fields(kind) if f.name not in ('data', 'augment', 'mhca')] + (['--mhca-share', '--mhca-merge', '--mhca-drop'] if hasattr(kind, 'mhca') else []) + ['--rho', '--n-max', '--dataset', '--img-size', '--mixup', '--erase', '--crop', '--folder']
             for name, kind in methods().items()}
    refused = []

    @settings(HOSTILE, max_examples=60)
    @given(st.sampled_from(sorted(names)), st.data(), st.one_of(NUMBERS.map(str), TEXTS))
    def attempt(method, data, value):
        option = data.draw(st.sampled_from(names[method]))
        refused.append(bool(one_line(run, capsys, 'train', method, '--n-max', '60', '--rho', '10', '--batch-size', '32', f'{option}={value}', '--out', 'runs/bad')))
        shutil.rmtree(run/'runs/bad', ignore_errors=True)
    attempt()
    assert len(refused) >= 60 and sum(refused) > 30


def test_files_of_a_run(run, no_training, capsys):
    "Cut, altered or replaced: the state, the settings, the lines, the weights of a teacher"
    refused, bad = [], run/'runs/bad'
    names = sorted(str(f.relative_to(run/'runs/good')) for f in (run/'runs/good').rglob('*') if f.is_file())
    state = next(n for n in names if 'state-' in n)

    @settings(HOSTILE, max_examples=70)
    @given(st.sampled_from([state, state, state, 'config.json', 'status.json', 'metrics.jsonl', 'teacher.safetensors']), st.randoms(use_true_random=False),
           st.sampled_from(['cut', 'flip', 'flip', 'lie', 'empty', 'noise', 'folder']))
    def attempt(name, random, damage):
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(run/'runs/good', bad)
        path = bad/name
        whole = (run/'runs/good'/state).read_bytes() if name == 'teacher.safetensors' else path.read_bytes() if path.exists() else b'{"epoch": 0}\n'
        if damage == 'cut': content = whole[:random.randrange(len(whole))]
        elif damage == 'flip': content = bytearray(whole); content[random.randrange(min(len(whole), random.choice([64, 4096, 10**9])))] ^= 1 << random.randrange(8)
        elif damage == 'lie': content = random.choice([(2**63).to_bytes(8, 'little'), (len(whole) * 2).to_bytes(8, 'little')]) + whole[8:]     # of the length of the header
        elif damage == 'noise': content = bytes(random.randrange(256) for _ in range(200))
        else: content = b''
        path.unlink(missing_ok=True)
        if damage == 'folder': path.mkdir()
        else: path.write_bytes(content)
        if name == 'teacher.safetensors': said = one_line(run, capsys, 'train', 'deit-lt', '--n-max', '60', '--rho', '10', '--batch-size', '32', '--teacher', 'runs/bad/teacher.safetensors', '--out', 'runs/bad/new')
        else: said = one_line(run, capsys, 'resume', 'runs/bad')
        refused.append(bool(said))
        assert said or name != state, (name, damage)
    attempt()
    assert len(refused) >= 70 and sum(refused) > 50
