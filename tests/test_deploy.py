"vitnb export as a command: every kind of student, what is missing, and what must be refused with nothing left behind"
import importlib.util, json, sys

import numpy as np
import pytest
import torch
from PIL import Image

from vitnb.cli import main
from vitnb.data.batches import normalise
from vitnb.data.sets import DataConfig
from vitnb.methods import deploy
from vitnb.methods.teacher import Teacher
from vitnb.methods.vit import ViT
from vitnb.models.mhca import with_mhca
from vitnb.models.student import backbones, make_student, read_weights, save_weights, student_config
from vitnb.training.load import load_student, load_test_images
from vitnb.training.runs import open_run
from vitnb.training.train import train

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A student, a Next-ViT and a teacher after a few updates, on a few noisy pictures of three classes"
    folder, random = tmp_path_factory.mktemp('runs'), np.random.RandomState(0)
    for name in ('cat', 'dog', 'owl'):
        (folder/'pets'/name).mkdir(parents=True)
        for i in range(40): Image.fromarray(random.randint(0, 255, (28, 28, 3), dtype=np.uint8)).save(folder/'pets'/name/f'{i}.png')
    short = dict(data=DataConfig(dataset=f'imagefolder:{folder/"pets"}', image_folder_size=28), epochs=1, batch_size=32, device='cpu', precision='fp32')
    train(ViT(**short), 'vit', folder/'vit', quiet=True)
    train(ViT(**short, student='nextvit-nano'), 'vit', folder/'next', quiet=True)
    train(Teacher(**short, depth=8), 'teacher', folder/'teacher', quiet=True)
    return folder


def said(capsys, *arguments):
    status, text = main([str(a) for a in arguments]), capsys.readouterr()
    return status, text.out.strip(), [line for line in text.err.splitlines() if line.strip()]


@pytest.mark.parametrize('kind', ['vit', 'next'])
def test_command_writes_the_format_of_the_ending(runs, kind, tmp_path, capsys):
    for name, format in (('s.onnx', 'onnx'), ('s.pt2', 'torch-export')):
        status, out, err = said(capsys, 'export', runs/kind, tmp_path/name)
        assert status == 0 and f'({format}, ' in out and ' test images: every label the same' in out and not err, (out, err)
    images = load_test_images(run := open_run(runs/kind)).images[:7]
    about = run.config['data']
    x = normalise(images, about['mean'], about['std'])
    with torch.no_grad(): ours = load_student(run)(x).avg
    program = torch.export.load(tmp_path/'s.pt2', extra_files=(extra := {'metadata.json': ''}))
    for theirs in (deploy.open_onnx(tmp_path/'s.onnx')(x)['avg'], program.module()(x)['avg']): assert torch.allclose(ours, theirs, atol=1e-4)
    assert json.loads(json.loads(extra['metadata.json'])['mean']) == about['mean']
    assert sorted(f.name for f in tmp_path.iterdir()) == ['s.onnx', 's.pt2']


def small_students():
    "The smallest preset of every backbone that has one, and a Vision Transformer with MHCA"
    sizes = {name: next(iter(kind.PRESETS)) for name, kind in backbones().items() if kind.PRESETS}
    return dict({name: student_config(preset, 28) for name, preset in sizes.items()}, mhca=with_mhca(student_config(), blocks=3), one_head=student_config(use_dist=False))


@pytest.mark.parametrize('name', small_students())
def test_every_kind_of_student(name, tmp_path):
    student = make_student(small_students()[name]).eval()
    for m in student.modules():       # statistics that a batch norm could have
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.running_mean.normal_(0, .2); m.running_var.uniform_(.5, 1.5)
    with torch.no_grad():
        for format, (write, read) in deploy.FORMATS.items():
            write(deploy.folded(student), tmp_path/format, {})
            answer = read(tmp_path/format)
            for batch in (1, 5):
                x = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(batch))
                ours, theirs = student(x), answer(x)
                assert all(torch.allclose(getattr(ours, k), theirs[k], atol=1e-4) for k in deploy.OUTPUTS), (format, batch)


def test_format_may_be_said(runs, tmp_path, capsys):
    status, out, _ = said(capsys, 'export', runs/'vit', tmp_path/'a.onnx', '--format', 'official')
    assert status == 0 and 'model' in torch.load(tmp_path/'a.onnx', weights_only=True)
    assert said(capsys, 'export', runs/'vit', tmp_path/'b', '--format', 'torch-export')[0] == 0 and torch.export.load(tmp_path/'b')


def test_latency_is_printed(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(deploy, 'latencies', lambda student, real=deploy.latencies: real(student, runtimes=('PyTorch', 'ONNX Runtime'), rounds=2))
    status, out, _ = said(capsys, 'export', runs/'next', tmp_path/'s.pt2', '--latency')
    rows = [line.split()[:3] for line in out.splitlines() if ' trained ' in line or ' merged ' in line]
    assert status == 0 and len([r for r in rows if r[0] in ('1', '32')]) == 8


@pytest.mark.parametrize('run, name, more, words', [
    ('teacher', 's.onnx', [], ['teacher', 'not a student']),
    ('vit', 'there.onnx', [], ['there.onnx', 'exists already']),
    ('vit', 's.tflite', ['--format', 'tflite'], ["unknown format 'tflite'", 'official', 'onnx', 'torch-export']),
    ('next', 's.pth', [], ['nextvit', 'official layout']),
    ('none', 's.onnx', [], ['no run folder'])])
def test_refusals(runs, run, name, more, words, tmp_path, capsys):
    (tmp_path/'there.onnx').write_text('mine')
    status, _, err = said(capsys, 'export', runs/run, tmp_path/name, *more)
    assert status == 2 and len(err) == 1 and all(w in err[0] for w in words), err
    assert [f.name for f in tmp_path.iterdir()] == ['there.onnx'] and (tmp_path/'there.onnx').read_text() == 'mine'


def test_missing_packages_are_named(runs, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name.startswith('onnx') else find(name, *a))
    for arguments in (['s.onnx'], ['s.pt2', '--latency']):
        status, _, err = said(capsys, 'export', runs/'vit', tmp_path/arguments[0], *arguments[1:])
        assert status == 2 and len(err) == 1 and 'onnxruntime' in err[0] and 'vitnb[export]' in err[0]
    assert said(capsys, 'export', runs/'vit', tmp_path/'s.pt2')[0] == 0        # needs none of them
    assert [f.name for f in tmp_path.iterdir()] == ['s.pt2']


def test_help_and_import_need_no_onnx():
    import subprocess
    code = "import sys, vitnb.methods.deploy; sys.exit(any(m.split('.')[0] in ('onnx', 'onnxruntime', 'onnxscript') for m in sys.modules))"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_weights_that_changed_and_other_images(runs, tmp_path, capsys):
    "A weight that is not a number agrees with nothing; images that are not the run's are no test"
    import shutil
    shutil.copytree(runs/'vit', broken := tmp_path/'broken')
    weights, about = read_weights(broken/'model.safetensors')
    weights['head.bias'][0] = float('nan')
    save_weights(weights, broken/'model.safetensors', **about)
    status, _, err = said(capsys, 'export', broken, tmp_path/'s.onnx')
    assert status == 2 and 'was not written' in err[0] and not (tmp_path/'s.onnx').exists()
    config = json.loads((broken/'config.json').read_text())
    config['data']['fingerprint'] = '0' * 16
    (broken/'config.json').write_text(json.dumps(config))
    status, _, err = said(capsys, 'export', broken, tmp_path/'s.onnx')
    assert status == 2 and 'not those that' in err[0]
    assert [f.name for f in tmp_path.iterdir()] == ['broken']
