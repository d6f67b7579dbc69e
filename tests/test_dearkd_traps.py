"The ways in which a re-implementation of DearKD or of its data-free part goes wrong without an error: each test fails when one is fallen into"
import dataclasses, inspect, json, math, re, runpy, sys
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import timm, torchvision
from torch import nn
from accelerate import Accelerator
from conftest import ROOT, some
from test_processes import command
from vitnb.core import UserError
from vitnb.data.batches import AugmentConfig, make_batch
from vitnb.data.sets import ImageSet
from vitnb.methods.datafree import InversionConfig, batch_labels, batch_norms, invert, listening, terms, variety_loss
from vitnb.models.any_teacher import packaged_teachers
from vitnb.methods import dearkd
from vitnb.methods.dearkd import DearKD, DearKDLT, DearStudent, TwoStages, extra_images, logit_distance, read_pairs
from vitnb.methods.imported import export_checkpoint
from vitnb.methods.registry import resume
from vitnb.models.any_teacher import AdaptedTeacher
from vitnb.models.checkpoints import student_from_checkpoint
from vitnb.models.mhca import MHCA, MhcaSettings, head_centres, mhca_map, patch_offsets, put_mhca, with_mhca
from vitnb.models.student import StudentConfig, make_student, read_weights, student_config
from vitnb.models.teacher import TeacherConfig, fold_batch_norms, make_teacher
from vitnb.training.loop import fit, rate_at
from vitnb.training.schedule import make_optimiser
from vitnb.training.train import train
from vitnb.widgets.attention_view import AttentionView
from vitnb.widgets.state import ModelSubject, make_state

CPU, TEACHER = torch.device('cpu'), str(packaged_teachers()[0])


def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def followed(data, epochs=2, steps=2, **settings):
    "A short training: what student and teacher saw, the losses of each epoch, the weights before each epoch"
    config = DearKD(epochs=epochs, batch_size=16, warmup_epochs=0, teacher=TEACHER, **settings)
    learner = config.learner(data, CPU, False)
    seen, weights, teacher = dict(teacher=[], student=[], mode=[]), [], learner.loss.teacher
    def watch(teacher, arguments): seen['teacher'].append(arguments[0]); seen['mode'].append(any(m.training for m in teacher.modules()))
    teacher.register_forward_pre_hook(watch)
    learner.model.register_forward_pre_hook(lambda m, args: seen['student'].append(args[0]))
    def copy(): return {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    weights.append(copy())
    optimiser, lines = make_optimiser(learner.model, 'adamw', 1e-3, .05), []
    for line in fit(config, learner, optimiser, Accelerator(cpu=True), steps, lambda e, s, m: make_batch(data, config.augment, 16, m, 0, e, s)):
        lines.append(line); weights.append(copy())
    return seen, lines, weights, learner, optimiser


def test_1_a_teacher_with_more_data_than_the_papers_is_named():
    assert extra_images('timm:regnety_160') and 'deit_in1k' in extra_images('timm:regnety_160')[0]      # timm's default weights saw ImageNet-12k
    assert not extra_images('timm:regnety_160.deit_in1k') and not extra_images('auto') and not extra_images('timm:regnety_160@file.pth')


@pytest.mark.parametrize('kind', (DearKD, DearKDLT))
def test_1_a_training_says_so(kind, data, monkeypatch):
    teacher, facts, _ = kind(teacher=TEACHER).its_teacher(data, CPU, False)
    monkeypatch.setattr(kind, 'its_teacher', lambda self, *_: (teacher, facts, None))      # nothing large is made
    for name in ('timm:regnety_160', 'timm:regnety_160.deit_in1k'):
        assert sum('more images than ImageNet' in n for n in kind(teacher=name).learner(data, CPU, False).notes) == (name == 'timm:regnety_160')


def test_2_the_teacher_sees_the_students_very_tensor_and_stays_in_evaluation_mode(data):
    seen, *_ = followed(some(data))
    assert len(seen['teacher']) == 2 and all(t is s for t, s in zip(seen['teacher'], seen['student'])) and not any(seen['mode'])
    with pytest.raises(UserError, match='very images'): DearKD(teacher_sees='clean').learner(data, CPU, False)


def test_3_the_start_survives_timms_initialisation():
    student = make_student(with_mhca(student_config(), blocks=2))
    for _ in range(2):
        for block in student.blocks[:2]:
            P = (patch_offsets((4, 4)) @ block.attn.pos_proj.weight.T).softmax(1)                      # (query, key, head)
            far = (patch_offsets((33, 33))[16 * 33 + 16] @ (8 * block.attn.pos_proj.weight).T).softmax(0)   # on a grid without borders near
            middle = far.T @ patch_offsets((33, 33))[16 * 33 + 16, :, :2]
            assert torch.allclose(middle, block.attn.centres, atol=1e-3) and P.shape == (16, 16, 3)      # centre of mass = the head's offset
            assert torch.equal(block.attn.qkv.weight[-96:], torch.eye(96))
        student.init_weights()


@pytest.mark.parametrize('heads', (3, 4, 6, 9, 12))
def test_4_every_head_has_a_whole_offset_and_moves_the_image_the_right_way(heads):
    layer = MHCA(heads, heads, (7, 7), prefix=0, pos_drop=0, locality=60., qkv_bias=False).eval()
    with torch.no_grad(): layer.gating_param.fill_(40.); layer.proj.weight.copy_(torch.eye(heads)); layer.proj.bias.zero_()
    image = torch.zeros(7, 7); image[3, 4] = 1
    with torch.no_grad(): out = layer(image.reshape(1, 49, 1).repeat(1, 1, heads))[0].T.reshape(heads, 7, 7)
    for (dx, dy), moved in zip(layer.centres.int().tolist(), out):
        assert moved[3 - dy, 4 - dx] == 1 and torch.allclose(moved, moved.round(), atol=1e-6)      # not blurred, not transposed, not mirrored
    assert len({tuple(c) for c in layer.centres.tolist()}) == heads


def test_5_tokens_without_a_place_do_not_shift_the_table():
    layer = MHCA(12, 3, (4, 4), prefix=2, pos_drop=0, locality=60.).eval()
    with torch.no_grad(): layer.gating_param.fill_(40.)
    x = noise(1, 18, 12)
    q, k, _ = layer.qkv(x).reshape(1, 18, 3, 3, 4).permute(2, 0, 3, 1, 4)
    A = mhca_map(layer, q, k)[0]
    for head, (dx, dy) in enumerate(layer.centres.int().tolist()):
        assert A[head, 2 + 5, 2 + 5 + 4 * dy + dx] > .99                            # from row 1, column 1
        assert A[head, 2:, :2].max() < 1e-6 and A[head, :2].max() < .9              # no patch sees CLS by position, and CLS looks by content
    with pytest.raises(UserError, match='2 . 16 tokens'): layer(noise(1, 19, 12))


def test_6_aligners_learn(data):
    _, _, weights, learner, optimiser = followed(some(data))
    known = {id(p) for g in optimiser.param_groups for p in g['params']}
    names = [n for n in weights[0] if n.startswith('aligners')]
    assert len(names) == 18 and all(id(p) in known for p in learner.model.parameters())
    assert all(not torch.equal(weights[0][n], weights[1][n]) for n in names)
    assert not any(n.startswith('aligners') for n in learner.model.get_submodule(learner.part).state_dict())


def test_7_the_switch_is_one(data):
    seen, lines, weights, learner, optimiser = followed(some(data), epochs=4, switch=.5)
    assert len(seen['teacher']) == 2 * 2 and learner.loss.teacher is None and learner.label is None          # two epochs of two steps
    assert [l['hidden'] > 0 for l in lines] == [l['dist'] > 0 for l in lines] == [True, True, False, False]
    assert all(a['lr'] > b['lr'] for a, b in zip(lines, lines[1:]))                                          # one cosine
    config = DearKD(epochs=300)
    assert rate_at(config, 250) < rate_at(config, 249.9) and {int(s['step']) for s in optimiser.state.values()} == {4, 8}      # Adam goes on; what ended has had 4
    batch, other = make_batch(data, AugmentConfig(), 16, True, 0, 0, 0), make_teacher(TeacherConfig(8), seed=5)
    def gradients(teacher):
        learner.model.zero_grad(); torch.manual_seed(0)
        TwoStages(teacher, (1, 2, 3), 2)(learner.model, batch, 2)['loss'].backward()
        return [p.grad.clone() for p in learner.model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients(AdaptedTeacher(other)), gradients(None)))


def test_8_the_head_that_was_left_behind_has_no_say(data, tmp_path):
    _, _, weights, learner, _ = followed(some(data), epochs=4, switch=.5)
    assert all(torch.equal(weights[2][f'student.head_dist.{k}'], weights[4][f'student.head_dist.{k}']) for k in ('weight', 'bias'))      # not even by weight decay
    assert not torch.equal(weights[1]['student.head_dist.weight'], weights[2]['student.head_dist.weight'])
    run = train(DearKD(epochs=2, batch_size=64, teacher=TEACHER, mhca=dataclasses.replace(DearKD().mhca, mhca_share=0.)), 'dearkd', tmp_path/'run', some(data), quiet=True)
    assert run.status['test']['avg'] == run.status['test']['cls'] and not any(k.startswith('aligners') for k in read_weights(run.path/'model.safetensors')[0])
    student = student_from_checkpoint(run.path/'model.safetensors')
    logits = student(noise(4, 1, 28, 28))
    assert torch.equal(logits.avg, logits.cls)
    export_checkpoint(run, tmp_path/'official.pth')
    theirs = timm.models.deit.VisionTransformerDistilled(**student.config.for_timm()).eval()
    theirs.load_state_dict(torch.load(tmp_path/'official.pth', weights_only=True)['model'])
    assert torch.allclose(theirs(noise(4, 1, 28, 28)), logits.cls, atol=1e-5)                # timm averages; the average is CLS


def test_9_soft_distillation_is_divided_as_deit_does():
    z, t = noise(8, 1000), noise(8, 1000, seed=1)
    batchmean = F.kl_div((z / 3).log_softmax(1), (t / 3).log_softmax(1), reduction='batchmean', log_target=True) * 9
    assert torch.isclose(logit_distance(z, t, 'soft', 3.), batchmean / 1000)


def test_10_every_batch_norm_is_heard_at_its_input_and_no_hook_stays():
    with torch.device('meta'): regnet = timm.create_model('regnety_160', num_classes=3)
    assert len(batch_norms(regnet)) == 59 and not any(type(m) is nn.BatchNorm2d for m in regnet.modules())      # a search by type finds none
    layer = nn.BatchNorm2d(3).eval()
    layer.running_mean.copy_(torch.tensor([1., 2., 3.])); layer.running_var.copy_(torch.tensor([4., 5., 6.]))
    x = noise(2, 3, 4, 4) * 2 + 1
    for _ in range(2):      # a second use must not count twice
        with listening(layer) as distances: layer(x)
        by_hand = (layer.running_var - x.var((0, 2, 3), unbiased=False)).norm() + (layer.running_mean - x.mean((0, 2, 3))).norm()
        assert len(distances) == 1 and torch.isclose(distances[0], by_hand) and not layer._forward_pre_hooks
    with pytest.raises(UserError, match='folded'): batch_norms(fold_batch_norms(make_teacher()))
    with pytest.raises(UserError, match='no batch normalisation'): batch_norms(make_student())
    for partly, at, name in ((torchvision.models.resnet18(), '', 'bn1'), (torchvision.models.resnet18(), 'layer2.0', 'bn2'), (timm.create_model('regnety_002'), 's2.b1.conv2', 'bn')):
        assert len(batch_norms(partly)) in (20, 44)                    # also with timm's squeeze-and-excitation, in which a bn is empty from the beginning
        setattr(partly.get_submodule(at), name, nn.Identity())         # as after folding this one alone
        with pytest.raises(UserError, match=rf'lost batch normalisations \({f"{at}.{name}".lstrip(".")}\)'): batch_norms(partly)
    first = timm.create_model('resnet18')
    first.conv1, first.bn1 = nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU()      # a first convolution that never had one is no mistake
    assert len(batch_norms(first)) == 19


def test_11_a_teacher_in_training_mode_is_refused_and_its_memory_does_not_drift():
    network, labels = make_teacher(TeacherConfig(8)), torch.tensor([0, 0, 1, 1])
    with pytest.raises(UserError, match='training mode'): invert(network, labels, noise(4, 1, 28, 28), InversionConfig(steps=1))
    before = [b.running_mean.clone() for b in batch_norms(network.eval())]
    invert(network, labels, noise(4, 1, 28, 28), InversionConfig(steps=2))
    assert all(torch.equal(a, b.running_mean) for a, b in zip(before, batch_norms(network))) and all(p.requires_grad for p in network.parameters())


def test_12_smoothness_weighs_the_same_for_every_batch():
    network, few = make_teacher(TeacherConfig(8)).eval(), noise(2, 1, 28, 28)
    def smoothness(n, **more):
        x, y = few.repeat(n, 1, 1, 1), torch.tensor([0, 1]).repeat(n)
        config = InversionConfig(variety='none', **more)
        with listening(network) as d: return terms(network, d, x, y, config)
    a, b = smoothness(1), smoothness(8)
    assert torch.isclose(a['tv_l2'], b['tv_l2']) and torch.isclose(a['bn'], b['bn'], rtol=1e-4)
    assert torch.isclose(smoothness(8, tv_batch=0)['tv_l2'], math.sqrt(8) * smoothness(1, tv_batch=0)['tv_l2'])      # what it would be


def test_13_variety_has_twins_in_every_batch_and_leaves_other_classes_alone():
    with pytest.raises(UserError, match='two images or more'): variety_loss(noise(4, 8), torch.arange(4))
    for C, n, B in ((1000, 2, 84), (10, 7, 50), (7, 3, 9), (7, 4, 6)):
        assert all((b.bincount()[b] >= 2).all() and len(b.unique()) > 1 and len(b) <= B for b in batch_labels(C, n, B))
        assert (torch.cat(batch_labels(C, n, B)).bincount() == n).all()
    with pytest.raises(UserError, match='larger batches'): batch_labels(7, 3, 6)      # two classes fill a batch, and the seventh would be alone
    y, f = torch.tensor([0, 0, 1, 1]), noise(4, 8)
    f[1] = f[0] + .01 * noise(8, seed=1); f[3] = -f[2]
    f.requires_grad_()
    (slope,) = torch.autograd.grad(variety_loss(f, y), f)
    assert slope[:2].norm() > 0 and slope[2:].norm() == 0
    network, heard = make_teacher(TeacherConfig(8)).eval(), []
    network.linear.register_forward_pre_hook(lambda m, i: heard.append(i[0]))
    with listening(network) as d: found = terms(network, d, noise(4, 1, 28, 28), y, InversionConfig())
    assert torch.isclose(found['variety'], variety_loss(heard[0], y)) and heard[0].shape == (4, 64)                  # features, not logits


@pytest.fixture
def makers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/'data'/'results'))
    import make_dearkd
    return make_dearkd


def test_14_less_data_is_reported_on_both_axes_and_with_both_teachers(makers):
    updates = {f: makers.schedule('small', 'updates', f) * makers.steps_of(f) for f in (100, 50, 25, 10, 5)}
    passes = {makers.schedule('small', 'epochs', f) for f in (100, 50, 25, 10, 5)}
    assert max(updates.values()) / min(updates.values()) < 1.06 and len(passes) == 1
    given = dataclasses.make_dataclass('Given', ['rows', 'teachers'])(list(makers.ROWS), ['fraction', 'all'])
    asked = list(makers.wanted(given, 10))
    assert ('DearKD', 'fraction') in asked and ('DearKD', 'all') in asked and ('ViT', 'none') in asked
    part, whole = (makers.teacher_settings('small', f, 0).data for f in (10, 100))
    assert part == makers.settings('small', 'DearKD', 'updates', 10, 0).data != whole


def test_15_no_epoch_is_chosen_on_the_test_images(makers, tmp_path, data):
    assert all(makers.settings('small', n, a, 10, 0).data.val_fraction == 0 for n in makers.ROWS for a in ('updates', 'epochs'))      # nothing to choose with
    run = train(dataclasses.replace(makers.settings('small', 'ViT', 'updates', 5, 0, tiny=True), student='nano', patch_size=7, batch_size=64, epochs=1), 'vit', tmp_path/'run',
                dataclasses.replace(some(data), val=None), quiet=True)
    assert not (run.path/'best.safetensors').exists() and set(run.status['test']) == {'cls', 'dist', 'avg'}


@pytest.mark.parametrize('stop', (2, 5))      # in stage 1, and in stage 2
def test_16_a_run_that_is_stopped_in_either_stage_ends_as_if_it_had_not_been(data, tmp_path, monkeypatch, stop):
    import vitnb.training.train as module
    few = dataclasses.replace(some(data, 90), val=None)
    config = DearKD(epochs=2, batch_size=32, patch_size=14, switch=.5, teacher=TEACHER, attention='explicit', save_every=0)
    straight = train(config, 'dearkd', tmp_path/'straight', few, quiet=True)
    keep, kept = module.keep_state, []
    def once(t):
        keep(t); kept.append(1)
        if len(kept) == stop: raise KeyboardInterrupt
    monkeypatch.setattr(module, 'keep_state', once)
    with pytest.raises(KeyboardInterrupt): train(config, 'dearkd', tmp_path/'stopped', few, quiet=True)
    stopped = resume(tmp_path/'stopped', few, quiet=True)
    a, b = (read_weights(r.path/'model.safetensors')[0] for r in (straight, stopped))
    assert all(torch.equal(a[k], b[k]) for k in a) and straight.status['test'] == stopped.status['test']
    assert [{k: v for k, v in l.items() if k != 'seconds'} for l in straight.metrics] == [{k: v for k, v in l.items() if k != 'seconds'} for l in stopped.metrics]


PROGRAM = """
import json, sys
from vitnb.data.sets import DataConfig
from vitnb.methods.dearkd import DearKD, DearKDLT
from vitnb.training.loop import fit
from vitnb.training.processes import is_first, whole
from vitnb.training.train import prepare
for kind, shard in ((DearKD, False), (DearKDLT, False), (DearKD, True))[:int(sys.argv[2])]:
    config = kind(data=DataConfig(n_max=24, rho=4), epochs=2, switch=.5, batch_size=24, patch_size=14, warmup_epochs=0, precision='fp32', attention='explicit', compile='off', device='cpu', teacher=sys.argv[1], shard=shard)
    t, *_ = prepare(config)
    def copy(): return {n: p.clone() for n, p in whole(dict(t.model.named_parameters())).items()}
    before = copy()
    for line in fit(config, t.learner, t.optimiser, t.accelerator, t.steps, t.batches, t.bf16, place=t.place):
        after = copy()
        moved = {part: max((after[n] - before[n]).abs().max().item() for n in after if part in n) for part in ('aligners', 'head_dist')}
        before = after
        if is_first(): print('LINE', json.dumps([kind.__name__, shard, line, moved]), flush=True)
"""


def test_17_two_processes_are_one_and_leave_behind_what_stage_2_does_not_train(tmp_path, monkeypatch, capsys):
    "Several processes give every weight a gradient; a zero would be enough for momentum and weight decay to move aligners and DIST's head"
    (tmp_path/'program.py').write_text(PROGRAM)
    def lines(text): return [json.loads(l.split('LINE ')[1]) for l in text.splitlines() if 'LINE ' in l]
    monkeypatch.setattr(sys, 'argv', ['program.py', TEACHER, '2'])
    runpy.run_path(str(tmp_path/'program.py'))
    one, done = lines(capsys.readouterr().out), command(tmp_path, 2, 'program.py', TEACHER, '3')
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    two = lines(done.stdout)
    assert len(one) == 4 and len(two) == 6
    for method, shard, line, moved in one + two:
        first = line['epoch'] == 0
        assert (moved['aligners'] > 0) == first and (moved['head_dist'] > 0) == (first or method == 'DearKDLT'), (method, shard, line, moved)
    for (_, _, a, _), (_, shard, b, _) in zip(one + one[:2], two, strict=True):
        for part in ('loss', 'cls', 'dist', 'hidden'): assert abs(a[part] - b[part]) < 2e-5 * max(1, abs(a[part])), (shard, part, a, b)


def help_of(kind, name):
    "What the help says about a setting: the text below it"
    source = inspect.getsource(next(k for k in kind.__mro__ if name in k.__dict__.get('__annotations__', {})))
    return re.search(rf'^    {name}: .*\n    "(.*)"$', source, re.M).group(1)


def test_18_defaults_that_are_ours_say_so_in_help_and_code():
    "Where the paper's text is not known here, whoever reads the help or the code must not take our choice for the paper's"
    common = 'teacher use_dist alpha switch hidden pairs'
    for kind, names in ((DearKD, f'{common} distillation temperature stage2_heads'), (DearKDLT, common), (MhcaSettings, ' '.join(f.name for f in dataclasses.fields(MhcaSettings)))):
        for name in names.split(): assert 'ours' in help_of(kind, name), (kind, name)
    for name in (f.name for f in dataclasses.fields(InversionConfig) if f.name != 'seed'):      # DeepInversion has two scripts and a paper, so a value that is not ours is of one of them
        assert re.search(r"\bour|CIFAR|ImageNet|both scripts", help_of(InversionConfig, name)), name
    for name in ('teacher_size', 'teacher_antialias', 'teacher_normalisation'): assert 'DeiT-LT' in help_of(DearKD, name), name      # not "the paper": here that is DearKD's
    for thing in (dearkd.Standardise, dearkd.Aligner, dearkd.feature_distance, dearkd.read_pairs, DearKD.early_epochs, head_centres, MHCA.init_weights, variety_loss): assert 'ours' in inspect.getdoc(thing), thing
    fields = inspect.getsource(TwoStages).splitlines()
    for name in ('alpha', 'hidden', 'kind', 'heads'): assert 'ours' in next(l for l in fields if l.strip().startswith(f'{name}: ')), name
    layer = inspect.getsource(MHCA.__init__).splitlines()
    for name in ('merge', 'pos_drop', 'centres', 'locality'): assert 'ours' in next(l for l in layer if l.strip().startswith(f'{name}: ')), name


@pytest.mark.parametrize('depth', (1, 2, 3, 4, 5))
def test_19_short_networks_have_pairs_too(depth):
    blocks, stages = read_pairs('auto', depth)
    student = make_student(StudentConfig(28, 7, 1, 10, 24, depth, 3))
    model, heard = DearStudent(student, blocks, [4] * len(stages)).train(), {}
    for b in blocks: student.blocks[b - 1].register_forward_hook(lambda m, i, o, b=b: heard.update({b: o[:, 2:]}))
    said = model(noise(2, 1, 28, 28), early=True)
    assert len(said.aligned) == min(3, depth) and all(torch.allclose(a, f(heard[b]), atol=1e-6) for a, f, b in zip(said.aligned, model.aligners, blocks))


def test_20_tokens_that_wait_to_the_end_are_refused(data):
    with pytest.raises(UserError, match='see nothing'): DearKD(mhca=MhcaSettings(1., mhca_prefix='late')).learner(data, CPU, False)
    student = make_student(MhcaSettings(5 / 6, mhca_prefix='late').of(student_config())).eval()
    a, b = student(noise(2, 1, 28, 28)).cls
    assert not torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize('merge', ('gate', 'logit'))
def test_20_tokens_that_wait_can_be_looked_at(merge):
    "The attention map has blocks before and after the tokens join, with the gates and positions of those before"
    student = put_mhca(make_student(), 2, merge=merge, prefix='late').eval()
    pictures = ImageSet(torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)), torch.arange(2), tuple('abcdefghij'))
    view = AttentionView({'late': ModelSubject(student, pictures, 'late', mean=(.5,), std=(.5,))}, make_state(block=2, head=1, query='patch', row=2, column=2, compare='position and content'))
    assert not view.note.value and ('0.73' in view.gates.value) == (merge == 'gate')
    maps, alone = view.subjects['late'].record(0).attention.maps[0], torch.eye(18)[:2].numpy()
    assert (maps[:2, :, :2] == alone).all() and not maps[:2, :, 2:, :2].any() and (maps[2:] > 0).all()
    for method, query, block in (('attention', 'cls', 1), ('attention', 'dist', 3), ('rollout', 'cls', 1), ('relevance', 'dist', 1), ('gradient rollout', 'patch', 2)):
        view.state.compare, view.state.method, view.state.query, view.state.block = 'nothing', method, query, block
        assert not view.note.value, (method, query, block, view.note.value)


def test_21_a_row_of_which_the_dropout_left_nothing_attends_by_content():
    torch.manual_seed(0)
    layer = MHCA(12, 3, (4, 4), pos_drop=.5, locality=300.).train()
    with torch.no_grad(): layer.gating_param.fill_(20.)
    out = layer(noise(2, 18, 12).requires_grad_())
    out.square().sum().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())


def test_22_one_epoch_is_one_with_the_teacher(data):
    seen, lines, _, learner, _ = followed(some(data), epochs=1)
    assert len(seen['teacher']) == 2 and lines[0]['hidden'] > 0 and 'no room for two stages' in learner.notes[-1]
    assert not any('no room' in n for n in DearKD(epochs=1, switch=1., teacher=TEACHER).learner(data, CPU, False).notes)
    assert any('keep-labels' in n for n in DearKD(keep_labels=True, teacher=TEACHER).learner(data, CPU, False).notes)
