"Checkpoints from anywhere: nothing in them runs, and what cannot be used ends in one line that names the file"
import argparse, json, os, pathlib, pickle, struct, zipfile

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from test_lists import cifar_tree, list_tree, no_checksums
from vitnb.cli import Import, import_data, main
from vitnb.core import UserError
from vitnb.data.lists import LIST_SETS, ListSet, read_lists
from vitnb.models import any_teacher as at
from vitnb.models.checkpoints import read_checkpoint, recognise_student, save_official, student_from_checkpoint, teacher_from_checkpoint
from vitnb.models.student import make_student, student_config
from vitnb.models.teacher import TeacherConfig, TimmNetwork, make_teacher
from vitnb.training.load import load_model
from vitnb.training.runs import open_run

W = torch.arange(6.).reshape(2, 3)
SHARED = W.repeat(99, 99)
READERS = [read_checkpoint, student_from_checkpoint, teacher_from_checkpoint, at.any_teacher]


class Call:
    "A pickle that calls a function when it is read in the ordinary way"
    def __init__(self, function, *arguments): self.call = function, arguments
    def __reduce__(self): return self.call


def refused(act, *arguments, path, **named):
    "The message of the one line with which the file is refused"
    with pytest.raises(UserError) as error: act(*arguments, **named)
    assert '\n' not in str(error.value) and path.name in str(error.value), error.value
    return str(error.value)


@pytest.fixture(scope='module')
def student(): return make_student(student_config('nano', 28, 1, 5), seed=1).eval()


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('where', ['beside', 'inside', 'as the file'])
@pytest.mark.parametrize('function', ['mkdir', 'open', 'eval', 'system', 'load', 'namespace'])
def test_malicious_pickle_does_not_run(tmp_path, function, where, legacy):
    owned, path = tmp_path/'owned', tmp_path/'evil.pth'
    evil = dict(mkdir=Call(os.mkdir, str(owned)), open=Call(open, str(owned), 'w'), eval=Call(eval, f'open({str(owned)!r}, "w")'),
                system=Call(os.system, f'touch {owned}'), load=Call(torch.load, str(owned)),
                namespace=Call(argparse.Namespace.__init__, Call(os.mkdir, str(owned))))[function]
    content = {'beside': dict(model=dict(w=W), args=evil), 'inside': dict(model=dict(w=evil)), 'as the file': evil}[where]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for reader in READERS: assert 'nothing was run' in refused(reader, path, path=path)
    assert not owned.exists()
    if where != 'inside' and function in ('mkdir', 'open', 'eval', 'system'):    # the file is a real one: read in the ordinary way it does the harm
        torch.load(path, weights_only=False)
        assert owned.exists()


def test_plain_pickles_do_not_run(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (path := tmp_path/f'{protocol}.pt').write_bytes(pickle.dumps(Call(os.mkdir, str(tmp_path/'owned')), protocol))
        refused(read_checkpoint, path, path=path)
    assert not (tmp_path/'owned').exists()


def test_settings_beside_the_weights_are_read_past(tmp_path):
    torch.save(dict(model=dict(w=W), epoch=3, best=np.float64(81.9), counts=np.arange(3), optimizer=dict(state={}, param_groups=[]),
                    args=argparse.Namespace(out=pathlib.PurePosixPath('a'), win=pathlib.PureWindowsPath('b'), lr=.1)), tmp_path/'usual.pth')
    allowed = torch.serialization.get_safe_globals()
    assert torch.equal(read_checkpoint(tmp_path/'usual.pth')['w'], W)
    assert set(torch.serialization.get_safe_globals()) == set(allowed), 'the allowance outlived the reading'


def test_what_others_allow_is_not_allowed_here(tmp_path):
    torch.save(dict(model=dict(w=W), args=Call(os.path.join, 'a', 'b')), path := tmp_path/'a.pth')
    with torch.serialization.safe_globals([os.path.join]):
        assert torch.load(path, weights_only=True)['args'] == 'a/b'
        assert 'posixpath.join' in refused(read_checkpoint, path, path=path)
        assert os.path.join in torch.serialization.get_safe_globals()


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path/'nothing.pth'):
        for reader in READERS[:3]: refused(reader, path, path=path)


@pytest.mark.parametrize('form', ['zip', 'legacy', 'safetensors'])
def test_truncated(tmp_path, student, form):
    path = tmp_path/'whole.pth'
    if form == 'safetensors': save_file(student.state_dict(), path)
    else: torch.save(dict(model=student.state_dict()), path, _use_new_zipfile_serialization=form == 'zip')
    content = path.read_bytes()
    read_checkpoint(path)
    for size in [0, 1, 8, 9, 10, 100, 5000, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:size])
        for reader in READERS: refused(reader, path, path=path)


@pytest.mark.parametrize('content', [b'', b'<html>Not found</html>', b'version https://git-lfs.github.com/spec/v1\n', b'{"a": 1}', b'\x80', b'\x80\x02.', b'PK\x03\x04',
                                     b'\x00' * 100, b'\xff' * 100, struct.pack('<Q', 2**63) + b'{}', struct.pack('<Q', 2) + b'{}', struct.pack('<Q', 2) + b'{x'])
def test_foreign_files(tmp_path, content):
    for name in ('a.pth', 'a.safetensors', 'a.tar'):
        (path := tmp_path/name).write_bytes(content)
        for reader in READERS: refused(reader, path, path=path)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(path := tmp_path/'a.pth', 'w') as z: z.writestr('readme.txt', 'hello')
    for reader in READERS: refused(reader, path, path=path)


@pytest.mark.parametrize('content, words', [
    (dict(epoch=3), 'no state dict'), ({}, 'no state dict'), (dict(model={}), 'no state dict'), ([W], 'no state dict'), (W, 'no state dict'), (dict(model={1: W}), 'no state dict'),
    (dict(model=dict(w=W.to_sparse())), 'ordinary'), (dict(model=dict(w=W * 1j)), 'ordinary'), (dict(model=dict(w=W.to('meta'))), 'ordinary'),
    (dict(model=dict(w=W / 0)), 'NaN'), (dict(w=torch.ones(1).expand(10**5, 10**5)), 'more weights'), ({name: SHARED for name in 'abc'}, 'more weights')])
def test_unusable_weights(tmp_path, content, words):
    torch.save(content, path := tmp_path/'a.pth')
    assert words in refused(read_checkpoint, path, path=path)


@pytest.mark.parametrize('change, words', [
    (lambda w: w.pop('dist_token'), 'without a distillation token'), (lambda w: w.pop('norm.weight'), 'norm.weight'), (lambda w: w.pop('head_dist.weight'), 'head_dist'),
    (lambda w: w.pop('pos_embed'), 'pos_embed'), (lambda w: w.update({'fc.weight': W}), 'fc.weight'), (lambda w: w.update({'pos_embed': torch.ones(1, 20, 96)}), 'square'),
    (lambda w: w.update({'pos_embed': torch.ones(1, 1, 96)}), 'square'), (lambda w: w.update({'pos_embed': W}), 'pos_embed'),
    (lambda w: w.update({'head_dist.weight': torch.ones(7, 96)}), '5 classes and head_dist 7'), (lambda w: w.update({'head.bias': torch.ones(7)}), 'head.bias'),
    (lambda w: w.update({'patch_embed.proj.weight': torch.ones(96, 1, 7, 5)}), 'square'), (lambda w: w.update({'patch_embed.proj.weight': torch.ones(0, 1, 7, 7)}), 'no student'),
    (lambda w: w.update({'blocks.9999.norm1.weight': W}), 'blocks.'), (lambda w: w.update({'blocks.99999999.norm1.weight': W}), 'blocks.99999999'),
    (lambda w: w.update({'blocks.2.attn.qkv.weight': W}), 'block 2'), (lambda w: w.update({'blocks.0.ls1.gamma': torch.ones(96)}), 'ls1.gamma')])
def test_wrong_students(tmp_path, student, change, words):
    change(weights := dict(student.state_dict()))
    torch.save(dict(model=weights), path := tmp_path/'student.pth')
    assert words in refused(student_from_checkpoint, path, path=path)


@pytest.mark.parametrize('family, change, words', [
    ('auto', lambda w: w.pop('linear.weight'), 'linear.weight'), ('paco', lambda w: None, 'family ldam'), ('ce', lambda w: None, 'family ldam'),
    ('auto', lambda w: w.update({'layer4.0.conv1.weight': W}), 'blocks'), ('auto', lambda w: w.update({'layer1.7.conv1.weight': W}), 'blocks'),
    ('auto', lambda w: w.update({'conv1.weight': W}), 'conv1.weight'), ('auto', lambda w: w.update({'layer2.0.shortcut.0.weight': W}), 'shortcut'),
    ('auto', lambda w: w.update({'linear.weight': torch.ones(10, 64)}), 'linear.weight')])
def test_wrong_teachers(tmp_path, family, change, words):
    change(weights := dict(make_teacher(TeacherConfig(8, 3, 10)).state_dict()))
    torch.save(dict(state_dict=weights), path := tmp_path/'teacher.pth')
    assert words in refused(teacher_from_checkpoint, path, family, path=path)


def test_headers_are_not_believed(tmp_path, student):
    for about in ('[]', '{"config": 3}', '{"config": {"num_heads": "x", "drop_path_rate": 7}}', '{"config": {"num_heads": true}}', 'null'):
        save_file(student.state_dict(), tmp_path/'a.safetensors', metadata=dict(vitnb=about))
        assert student_from_checkpoint(tmp_path/'a.safetensors').config.num_heads == 3
    save_file(student.state_dict(), path := tmp_path/'b.safetensors', metadata=dict(vitnb=json.dumps(dict(config=dict(num_heads=-7)))))
    refused(student_from_checkpoint, path, path=path)


def test_teachers_whatever_the_header_says(tmp_path):
    net, x = make_teacher(TeacherConfig(8, 1, 10)).eval(), torch.randn(2, 1, 32, 32)
    for name, about in [('a.safetensors', '[]'), ('b.safetensors', '{"kind": "teacher"}'), ('c.safetensors', '{"kind": "teacher", "config": {"depth": 99, "x": 1}}'), ('d.pth', '{}')]:
        save_file(net.state_dict(), tmp_path/name, metadata=dict(vitnb=about))
        assert torch.allclose(at.any_teacher(tmp_path/name)[0](x), net(x), atol=1e-5)
    torch.save(net.state_dict(), path := tmp_path/'zip.safetensors')
    assert torch.allclose(at.any_teacher(path)[0](x), net(x), atol=1e-5)
    save_file(net.state_dict(), tmp_path/'e.safetensors', metadata=dict(vitnb='{"kind": "teacher", "mean": [0.5], "std": [0]}'))
    with pytest.raises(UserError, match='positive deviation'): at.any_teacher(tmp_path/'e.safetensors', normalisation='own', student_mean_std=([0.], [1.]))


def test_round_trip(tmp_path, student):
    save_official(student, tmp_path/'s.pth')
    again = student_from_checkpoint(tmp_path/'s.pth')
    assert again.config == student.config and all(torch.equal(v, again.state_dict()[k]) for k, v in student.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ['s.pth']
    first = (tmp_path/'s.pth').read_bytes()
    save_official(again, tmp_path/'t.pth')
    assert (tmp_path/'t.pth').read_bytes() == first


def test_pretrained_weights_that_cannot_be_had(monkeypatch):
    def unreachable(*a, **k): raise OSError('no route to host\nand more')
    monkeypatch.setattr(timm, 'create_model', unreachable)
    with pytest.raises(UserError, match='timm:resnet18@FILE') as error: at.any_teacher('timm:resnet18')
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='did you mean'): at.any_teacher('timm:resnet5')


def test_recognise_needs_no_file(student): assert recognise_student(student.state_dict()) == student.config


def test_a_student_without_a_dist_head_goes_out_and_comes_back(tmp_path):
    from dataclasses import asdict, replace
    from vitnb.models.student import save_weights
    config = replace(student_config('nano', 28, 1, 5), use_dist=False)
    alone, x = make_student(config, seed=3).eval(), torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    save_official(alone, tmp_path/'out.pth')
    theirs = timm.models.deit.VisionTransformerDistilled(**config.for_timm()).eval()
    theirs.load_state_dict(torch.load(tmp_path/'out.pth', weights_only=True)['model'], strict=True)
    assert torch.allclose(theirs(x), alone(x).avg, atol=1e-6)                    # timm answers what the student answers
    assert torch.equal(student_from_checkpoint(tmp_path/'out.pth')(x).cls.argmax(1), alone(x).cls.argmax(1))
    save_weights(alone, tmp_path/'run.safetensors', config=asdict(config))
    back = student_from_checkpoint(tmp_path/'run.safetensors')
    assert back.config == config and torch.equal(back(x).dist, alone(x).cls)


def test_a_transformer_may_teach_at_any_size(tmp_path):
    from dataclasses import asdict
    from vitnb.models.student import save_weights
    config = TeacherConfig(network='vit_tiny_patch16_224', in_chans=1, num_classes=5, img_size=48, cosine=False)
    net, x = make_teacher(config).eval(), torch.randn(2, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    save_weights(net, path := tmp_path/'model.safetensors', kind='teacher', config=asdict(config), img_size=48)
    teacher, facts = at.any_teacher(path)
    assert facts['size'] == 48 and torch.allclose(teacher(x), net(x), atol=1e-5) and teacher(torch.randn(2, 1, 96, 96)).shape == (2, 5)


# `vitnb import` -----------------------------------------------------------------------------------------------------

@pytest.fixture
def listed(tmp_path, monkeypatch):
    "ImageNet-LT with four classes, and the arguments that find it"
    list_tree(tmp_path/'lt', (2, 1, 4, 5), test_per_class=3)
    monkeypatch.setitem(LIST_SETS, 'imagenet-lt', ListSet('Imagenet_LT_train.txt', 'Imagenet_LT_test.txt', 4, 12, 12))
    monkeypatch.chdir(tmp_path)
    return ['--dataset', 'imagenet-lt', '--folder', 'lt', '--lists', 'lt', '--device', 'cpu']


def paco_file(path, num_classes=4):
    "A ResNet-50 as PaCo's authors release it"
    torch.manual_seed(0)
    body, linear = torchvision.models.resnet50(num_classes=1), torch.nn.Linear(2048, num_classes)
    weights = {f'encoder_q.{k}': v for k, v in body.state_dict().items() if not k.startswith('fc.')}
    weights |= {'encoder_q.fc.0.weight': W, 'queue': W, **{f'linear.{k}': v for k, v in linear.state_dict().items()}}
    torch.save(dict(state_dict={f'module.{k}': v for k, v in weights.items()}), path)
    body.fc = linear
    return body.eval()


def test_a_released_resnet50_in_either_order_of_classes(tmp_path, listed, capsys):
    "It is tested, built again from its folder, analysed; with --map-targets its answers are in the order of the images"
    net = paco_file('paco.pth.tar')
    for out, more in (('plain', []), ('mapped', ['--map-targets'])): assert main(['import', 'paco.pth.tar', *listed, '--out', out, *more]) == 0
    plain, mapped = (open_run(out) for out in ('plain', 'mapped'))
    *_, class_map = read_lists(LIST_SETS['imagenet-lt'], 'lt', 'lt')
    assert class_map.tolist() == [2, 3, 1, 0] and plain.config['config']['data']['img_size'] == 224
    assert np.array_equal(mapped.predictions['out'][:, class_map], plain.predictions['out']) and mapped.predictions['out'].std() > 0
    again, x = load_model(mapped), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert isinstance(again, TimmNetwork) and again.config.network == 'resnet50'
    with torch.no_grad(): assert torch.allclose(again(x)[:, class_map], net(x), atol=1e-5)
    assert at.any_teacher('mapped')[1]['class_names'] == ['class 3', 'class 2', 'class 0', 'class 1']
    assert main(['import', 'mapped/model.safetensors', *listed, '--out', 'second']) == 0
    assert np.array_equal(open_run('second').predictions['out'], mapped.predictions['out'])
    capsys.readouterr()
    assert main(['import', 'mapped/model.safetensors', *listed, '--map-targets']) == 2 and 'leave --map-targets out' in capsys.readouterr().err
    assert main(['import', 'paco.pth.tar', '--map-targets', '--device', 'cpu']) == 2 and 'for 4 classes' in capsys.readouterr().err
    assert main(['analyse', 'mapped', '--only', 'scores', 'rank']) == 0 and (tmp_path/'mapped'/'analysis').is_dir()


def test_without_a_recipe_that_of_the_data_set_is_taken(tmp_path, no_checksums, capsys):
    "A student for 224 px is tested at 224 px on CIFAR, and one for another side says that it was changed"
    cifar_tree(tmp_path, 'cifar10')
    common = ['--dataset', 'cifar10', '--folder', str(tmp_path), '--n-max', '20', '--rho', '10', '--device', 'cpu']
    for side, patch, changed in ((224, 32, False), (32, 8, True)):
        save_official(make_student(student_config('nano', side, 3, 10, patch)), path := tmp_path/f'{side}.pth')
        assert main(['import', str(path), *common, '--out', str(tmp_path/f'run-{side}')]) == 0
        said = capsys.readouterr().out
        assert 'as in the recipe cifar10-lt of deit-lt' in said and (f'made for images of {side} px and sees them here at 224 px' in said) == changed
        run = open_run(tmp_path/f'run-{side}')
        assert load_model(run).config.img_size == 224 and run.config['config']['data']['eval_crop'] == .875
    for name, recipe in (('cifar100', 'cifar100-lt'), ('imagenet-lt', 'imagenet-lt'), ('inaturalist18', 'inaturalist-2018')):
        assert import_data(Import(path, dataset=name)).img_size == 224 and f'recipe {recipe} of deit-lt' in capsys.readouterr().out
    assert import_data(Import(path, dataset='cifar10', recipe='fashion-mnist-lt')).img_size is None and not capsys.readouterr().out


@pytest.mark.parametrize('side', [28, 56])
def test_a_file_is_read_once(tmp_path, monkeypatch, side):
    "Also when the student is for images of another side: then there is one copy of it for these"
    import vitnb.models.checkpoints as module
    from vitnb.models.student import StudentConfig
    read, build, reads, builds = module._unpickled, StudentConfig.build, [], []
    monkeypatch.setattr(module, '_unpickled', lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(StudentConfig, 'build', lambda self: builds.append(self.img_size) or build(self))
    monkeypatch.chdir(tmp_path)
    student, teacher = make_student(student_config('nano', side, 1, 10, 14)), make_teacher(TeacherConfig(8))
    save_official(student, tmp_path/'student.pth'), torch.save(teacher.state_dict(), tmp_path/'teacher.pth')
    builds.clear()
    for name in ('student', 'teacher'):
        reads.clear()
        assert main(['import', f'{name}.pth', '--device', 'cpu', '--out', name]) == 0 and len(reads) == 1
        if name == 'student': made = builds[:2]
    assert made == ([28, 28] if side == 28 else [56, 28])
