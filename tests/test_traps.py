"The ways in which a re-implementation of DeiT-LT goes wrong without an error: each test fails when one is fallen into"
import dataclasses, math
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import some
from vitnb.core import UserError
from vitnb.data.batches import AugmentConfig, clean_view, make_batch
from vitnb.data.longtail import by_size, class_counts, size_groups
from vitnb.data.sampling import epoch_indices, sampled_steps
from vitnb.data.sets import IMAGENET, DataConfig, ImageSet
from vitnb.methods.deit import check_classes, distillation_loss
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.recipes import recipe
from vitnb.models.any_teacher import listed_classes
from vitnb.models.student import TokenLogits
from vitnb.models.any_teacher import AdaptedTeacher, any_teacher
from vitnb.training.loop import answers, fit, rate_at
from vitnb.training.train import batches_of, train
from vitnb.training.losses import drw_epoch
from vitnb.training.schedule import make_optimiser

CPU = torch.device('cpu')


def watched_training(data, monkeypatch, epochs=2, drw_start=.5, steps=2):
    "A few steps of DeiT-LT on the batches of training: the tensors that the teacher and the student saw, the batches, and the teacher's mode"
    config = DeiTLT(epochs=epochs, batch_size=16, drw_start=drw_start)
    learner, seen = config.learner(data, CPU, False), dict(teacher=[], student=[], batches=[], mode=[], said=[])
    label = AdaptedTeacher.label
    def noted(self, images):
        seen['teacher'].append(images); seen['mode'].append(any(m.training for m in self.modules())); seen['said'].append(label(self, images))
        return seen['said'][-1]
    monkeypatch.setattr(AdaptedTeacher, 'label', noted)
    learner.model.register_forward_pre_hook(lambda m, args: seen['student'].append(args[0]))
    made = batches_of(config, learner, data, CPU)
    def batches(epoch, step, mixing): seen['batches'].append(made(epoch, step, mixing)); return seen['batches'][-1]
    list(fit(config, learner, make_optimiser(learner.model, 'adamw', 1e-3, .05), Accelerator(cpu=True), steps, batches))
    return seen


def test_1_the_teacher_labels_the_very_tensor_of_the_student(data, monkeypatch):
    seen = watched_training(data, monkeypatch)
    assert len(seen['teacher']) == len(seen['student']) == 4
    for teacher, student, said, batch in zip(seen['teacher'], seen['student'], seen['said'], seen['batches'], strict=True):
        assert teacher is student is batch.images and batch.taught is said                      # and DIST learns what was said
    mixed, plain = (make_batch(data, AugmentConfig(), 16, m, 0, 0, 0, clean=True) for m in (True, False))
    assert torch.equal(seen['teacher'][0], mixed.images)
    for other in (mixed.clean, plain.images): assert (seen['teacher'][0] != other).flatten(1).any(1).all()      # augmented, and mixed
    assert not any(seen['mode']), 'the teacher must stay in evaluation mode'
    frozen = AdaptedTeacher(torch.nn.Sequential(torch.nn.BatchNorm2d(1)))
    frozen.train()
    assert not any(m.training for m in frozen.modules())


def test_2_weights_follow_the_teachers_label_on_dist_only():
    torch.manual_seed(0)
    z, y, t, w = TokenLogits(torch.randn(4, 3), torch.randn(4, 3)), torch.tensor([0, 0, 1, 1]), torch.tensor([2, 0, 2, 1]), torch.tensor([1., 1., 50.])
    plain, weighted = distillation_loss(z, y, t), distillation_loss(z, y, t, w)
    assert weighted['cls'] == plain['cls']
    each = -z.dist.log_softmax(1)[range(4), t]
    assert torch.isclose(weighted['dist'], .5 * (w[t] * each).sum() / w[t].sum())       # by t, and divided by the batch's weights
    assert not torch.isclose(weighted['dist'], .5 * (w[y] * each).sum() / w[y].sum()) and not torch.isclose(weighted['dist'], .5 * (w[t] * each).mean())
    assert drw_epoch(1200, 1100 / 1200) == 1100


def test_3_the_second_stage_stops_mixing_and_smoothing_for_cifar_only(data, monkeypatch):
    targets = [b.targets for b in watched_training(data, monkeypatch)['batches']]
    assert [t.ndim for t in targets] == [2, 2, 1, 1]
    assert targets[0].max() < 1 and targets[2].dtype == torch.long                       # smoothed before, plain after
    late = make_batch(data, AugmentConfig(erase=1.), 64, False, 0, 0, 0, clean=True)
    assert (late.images != late.clean).flatten(1).any(1).all()                           # augmentation goes on
    assert [recipe('deit-lt', n).mix_in_drw for n in ('cifar10-lt', 'cifar100-lt', 'imagenet-lt', 'inaturalist-2018')] == [False, False, True, True]


def test_4_accumulation_does_not_scale_the_learning_rate():
    config = recipe('deit-lt', 'cifar10-lt')
    assert config.lr == 5e-4 * 256 / 512 and config.batch_size * config.accumulate == 1024
    assert rate_at(config, 600) == rate_at(dataclasses.replace(config, accumulate=1), 600)
    assert math.isclose(rate_at(config, 1100), 1.41e-5, rel_tol=.01)                     # re-weighting runs near the minimum


def test_5_repeated_augmentation_sees_another_third_each_epoch(data):
    n, batch = 12406, 128
    cifar = torch.cat([epoch_indices(n, batch, 0, 0, s, repeats=3) for s in range(sampled_steps(n, batch, 3))])
    assert len(cifar) == 12288 and torch.bincount(cifar).unique().tolist() == [0, 3] and len(cifar.unique()) == 4096
    n = len(data.train)                                                                  # the batches of training, of images that say which one they are
    numbered = torch.zeros_like(data.train.images)
    numbered[:, 0, 0, 0], numbered[:, 0, 0, 1] = torch.arange(n) // 256, torch.arange(n) % 256
    marked = dataclasses.replace(data, train=dataclasses.replace(data.train, images=numbered))
    config = DeiTLT(epochs=12, batch_size=batch, repeats=3, augment=AugmentConfig(crop='none', flip=False, erase=0))
    batches = batches_of(config, dataclasses.replace(config.learner(data, CPU, False), label=None), marked, CPU)
    def which(epoch, step):
        pixels = (batches(epoch, step, False).images[:, 0, 0, :2] * data.std[0] + data.mean[0]) * 255
        return (pixels.round().long() * torch.tensor([256, 1])).sum(1)
    epochs = [torch.cat([which(e, s) for s in range(sampled_steps(n, batch, 3))]) for e in range(12)]
    for order in epochs: assert len(order) == n // 256 * 256 and len(order.unique()) == math.ceil(len(order) / 3) and torch.bincount(order).max() == 3
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    seen = len(torch.cat(epochs).unique()) / n
    assert seen > .95, 'an order that never changes shows the same third for ever'
    assert recipe('deit-lt', 'cifar10-lt').repeats == 3
    with pytest.raises(UserError): sampled_steps(200, 128, 3)


def test_6_logits_are_averaged_not_probabilities():
    z = TokenLogits(torch.tensor([[4., 0., 3.]]), torch.tensor([[0., 3.5, 3.]]))
    by_probability = (z.cls.softmax(1) + z.dist.softmax(1)).argmax(1)
    assert answers(z)['avg'].argmax(1).item() == 2 != by_probability.item()
    assert torch.equal(answers(z)['avg'], (z.cls + z.dist) / 2)


def test_7_cifar_is_seen_at_224_px_with_imagenets_statistics():
    for name in ('cifar10-lt', 'cifar100-lt'):
        config = recipe('deit-lt', name).data
        assert (config.img_size, config.eval_crop, config.statistics, config.val_fraction) == (224, .875, 'imagenet', 0)
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    picture[..., :2] = 255                                                               # what lies outside of the middle 28 of 32 pixels
    seen = clean_view(picture, *IMAGENET, 224, .875)
    assert seen.shape == (1, 3, 224, 224) and torch.allclose(seen[0, :, 112, 20:], torch.tensor([-m / s for m, s in zip(*IMAGENET)])[:, None].expand(3, 204), atol=.02)
    assert clean_view(picture, *IMAGENET, 224, 1.)[0, 0, 112, 3] > 2                     # without the crop the stripe is there


def test_8_the_teachers_images_are_reduced_without_smoothing(data):
    assert (recipe('deit-lt', 'cifar10-lt').teacher_size, recipe('deit-lt', 'cifar10-lt').teacher_antialias) == (32, False)
    images = torch.randn(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    seen = []
    class Watch(torch.nn.Module):
        def forward(self, x): seen.append(x); return x.mean((2, 3)).repeat(1, 3)
    AdaptedTeacher(Watch(), size=32).label(images)
    sharp, smooth = (torch.nn.functional.interpolate(images, (32, 32), mode='bicubic', antialias=a) for a in (False, True))
    assert torch.equal(seen[0], sharp) and (smooth - sharp).norm() > .5 * sharp.norm()   # the values themselves: nothing is normalised again


def test_8_a_teacher_sees_images_of_the_size_it_learned_from(data):
    from vitnb.core import packaged
    teacher, facts = any_teacher(packaged('teachers', 'fashion-mnist-lt-100.safetensors'))
    assert teacher.size == facts['size'] == 28 and teacher.adapt(torch.zeros(1, 1, 112, 112)).shape[-1] == 28
    for method in ('teacher', 'paco'):                                                   # what they will write into their files
        learner = dataclasses.replace(recipe(method, 'fashion-mnist-lt'), depth=8, data=DataConfig(n_max=100)).learner(data, CPU, False)
        assert (learner.about['img_size'], learner.about['mixed']) == (28, False)


def test_9_a_teacher_that_is_numbered_by_size_is_not_mapped(data):
    names = tuple(f'class {c}' for c in reversed(range(10)))
    listed = dataclasses.replace(data, train=dataclasses.replace(data.train, class_names=names))
    with pytest.raises(UserError, match='leave --map-targets out'): check_classes('TEACHER', dict(class_names=names, mapped=True), listed)
    check_classes('TEACHER', dict(class_names=names, mapped=False), listed)
    check_classes('TEACHER', dict(class_names=None, mapped=True), listed)                # the authors' PaCo files say nothing
    with pytest.raises(UserError, match='another data set'): check_classes('TEACHER', dict(class_names=names[::-1], mapped=False), listed)


def test_9_classes_by_size_and_rho_the_right_way_round():
    counts = class_counts(10, 5000, 100)
    assert counts[0] == 5000 and counts[-1] == 50
    with pytest.raises(UserError): class_counts(10, 5000, .01)                           # μ = n_min / n_max is not ρ
    assert by_size([5, 9, 5, 9, 5]).tolist() == [1, 3, 0, 2, 4]                          # equal classes keep their order
    assert listed_classes(['class 2', 'class 0', 'class 1']).tolist() == [1, 2, 0]       # PaCo's numbers to those by size, not the reverse
    groups = size_groups(class_counts(100, 500, 50))                                     # fixed cuts, not counts
    assert [len(g) for _, g in groups.items()] == [36, 35, 29]
    assert [len(g) for _, g in size_groups(class_counts(100, 500, 50), 'count').items()] == [41, 41, 18]


def test_10_the_test_images_choose_nothing(data, tmp_path):
    part = some(data)
    other = dataclasses.replace(part, test=dataclasses.replace(part.test, labels=part.test.labels.roll(1), images=part.test.images.flip(0)))
    config = DeiTLT(epochs=3, batch_size=32, teacher=str(teacher_of(part, tmp_path)))
    runs = [train(config, 'deit-lt', tmp_path/name, d, quiet=True) for name, d in (('one', part), ('two', other))]
    assert runs[0].metrics[-1]['val'] == runs[1].metrics[-1]['val'] and runs[0].status['test'] != runs[1].status['test']
    for weights in ('best.safetensors', 'model.safetensors'):
        assert (runs[0].path/weights).read_bytes() == (runs[1].path/weights).read_bytes()


def teacher_of(data, folder):
    "A small teacher for any data of this shape"
    from vitnb.models.student import save_weights
    from vitnb.models.teacher import TeacherConfig, make_teacher
    config = TeacherConfig(8)
    save_weights(make_teacher(config), folder/'teacher.safetensors', kind='teacher', config=dataclasses.asdict(config), class_names=data.train.class_names)
    return folder/'teacher.safetensors'
