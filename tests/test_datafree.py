"Made images from any kind of teacher, and what a student is told to do with them: each test fails where something goes wrong without an error"
import dataclasses, json, shlex
import pytest
import torch
import timm, torchvision
from PIL import Image
from vitnb import cli
from vitnb.core import UserError, generator
from vitnb.data.batches import clean_view
from vitnb.data.sets import IMAGENET, long_tailed
from vitnb.methods.datafree import InversionConfig, begun, classifier, competition, competitor, invert, make_images, read_made, start_making, terms, listening
from vitnb.models.any_teacher import packaged_teachers, teacher_source
from vitnb.models.student import about_student, make_student, save_weights, student_config
from vitnb.training.runs import open_run

TEACHER, FEW = str(packaged_teachers()[0]), InversionConfig(steps=2, batch_size=20)
CPU = torch.device('cpu')


def printed(capsys, *arguments) -> list[str]:
    "The command that `vitnb generate` names at its end, as words"
    assert cli.main(['generate', *map(str, arguments), '--device', 'cpu']) == 0
    return shlex.split(capsys.readouterr().out.rpartition('train on it with `')[2].strip().removesuffix('`'))


def settings_of(command, monkeypatch):
    "The settings that a printed command trains with"
    kept = []
    monkeypatch.setattr(cli, 'run_and_report', lambda settings, *_: kept.append(settings))
    assert command[:3] == ['vitnb', 'train', 'dearkd'] and cli.main(command[1:]) == 0
    return kept[0]


def share_right(config) -> float:
    "How often the teacher of a training is right about the images that it was made for"
    data = long_tailed(config.data)
    teacher = config.its_teacher(data, CPU, False)[0]
    return (teacher.label(clean_view(data.train.images, data.mean, data.std, data.img_size)) == data.train.labels).float().mean().item()


def test_the_printed_command_lets_the_teacher_see_what_it_made(tmp_path, capsys, monkeypatch):
    config = settings_of(printed(capsys, TEACHER, tmp_path/'made images', '--per-class', 6, '--steps', 80, '--batch-size', 60), monkeypatch)
    assert config.data.image_folder_size == 28 and share_right(config) > .9
    assert share_right(dataclasses.replace(config, teacher_normalisation='student')) < .6      # what it was


def test_a_teacher_at_another_size_than_its_own_sees_the_pictures_at_theirs(tmp_path, capsys, monkeypatch):
    config = settings_of(printed(capsys, TEACHER, tmp_path/'made', '--per-class', 4, '--steps', 60, '--size', 20, '--batch-size', 40), monkeypatch)
    assert (config.teacher_size, config.data.image_folder_size) == (20, 20) and share_right(config) > .9


def test_the_printed_command_trains(tmp_path, capsys):
    "From a folder of made images to a finished run in both stages, by what was printed alone"
    command = printed(capsys, TEACHER, tmp_path/'made', '--per-class', 6, '--steps', 3, '--batch-size', 60)
    few = ['--out', str(tmp_path/'run'), '--epochs', '2', '--batch-size', '16', '--patch-size', '14', '--warmup-epochs', '0', '--device', 'cpu']
    assert cli.main([*command[1:], *few]) == 0
    run = open_run(tmp_path/'run')
    first, last = run.metrics
    assert first['hidden'] > 0 == last['hidden'] and first['dist'] > 0 == last['dist'] and 'cls' in run.status['test']
    assert run.config['config']['data']['dataset'] == f'imagefolder:{tmp_path/"made"}' and run.config['config']['teacher_normalisation'] == 'own'


def test_what_the_command_says(tmp_path, capsys):
    "Where the growing images are, and how to look at the finished ones"
    assert cli.main(['generate', TEACHER, str(tmp_path/'made'), '--per-class', '2', '--steps', '3', '--batch-size', '20', '--device', 'cpu']) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == f'{tmp_path/"made"/"latest.png"} shows the batch at hand, and is renewed every 25 steps' and (tmp_path/'made'/'latest.png').is_file()
    scope = {}
    exec(said.partition('with `')[2].partition('`\n')[0].replace('made_view(', 'view = made_view('), scope)
    assert scope['view'].cards.value.count('its nearest real image') == 2
    assert cli.main(['generate', str(tmp_path/'none'), str(tmp_path/'other')]) == 2
    assert 'latest.png' not in capsys.readouterr().out


@pytest.fixture
def resnet(tmp_path):
    "A state dict file of torchvision, which says nothing about its images"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), tmp_path/'resnet18.pth')
    return tmp_path/'resnet18.pth'


def test_a_teacher_of_torchvision(tmp_path, resnet, capsys, monkeypatch):
    with pytest.raises(UserError, match='give mean and std, for ImageNet'): make_images(resnet, tmp_path/'made', 2, FEW, 32)
    for mean, std, said in (([.5], [.5], 'each of the 3 channels'), ([.5] * 3, [0.] * 3, 'above 0'), ([.5] * 3, None, 'both')):
        with pytest.raises(UserError, match=said): make_images(resnet, tmp_path/'made', 2, FEW, 32, mean=mean, std=std)
    assert not (tmp_path/'made').exists()
    mean, std = (list(map(str, v)) for v in IMAGENET)
    made = tmp_path/'made'
    command = printed(capsys, resnet, made, '--size', 32, '--per-class', 5, '--steps', 2, '--mean', *mean, '--std', *std)
    images = read_made(made, 3)
    assert images.images.shape == (15, 3, 32, 32) and command[-4:] == ['--image-folder-size', '32', '--statistics', 'imagenet']
    seen = clean_view(images.images, *IMAGENET, 32)
    config = settings_of(command, monkeypatch)
    data = long_tailed(config.data)
    teacher = config.its_teacher(data, CPU, False)[0]
    first = data.train.images[:1]
    place = next(i for i, x in enumerate(images.images) if torch.equal(x, first[0]))
    assert torch.allclose(teacher.adapt(clean_view(first, data.mean, data.std, data.img_size)), seen[place:place + 1], atol=1e-5)
    assert cli.main(['generate', str(resnet), str(tmp_path/'grey'), '--size', '32', '--per-class', '2', '--steps', '1', '--mean', '.5', '.5', '.5', '--std', '.5', '.5', '.5', '--device', 'cpu']) == 0
    assert 'note: in training the teacher' in capsys.readouterr().out


@pytest.mark.parametrize('name', ('resnet18', 'regnety_002'))
def test_a_teacher_of_timm(tmp_path, name, capsys, monkeypatch):
    torch.manual_seed(0)
    torch.save(timm.create_model(name, num_classes=3).state_dict(), tmp_path/'net.pth')
    teacher, made = f'timm:{name}@{tmp_path/"net.pth"}', tmp_path/'made'
    command = printed(capsys, teacher, made, '--size', 32, '--per-class', 2, '--steps', 3)
    images = read_made(made, 3)
    assert images.images.shape == (6, 3, 32, 32) and images.counts.tolist() == [2] * 3 and (made/'latest.png').is_file()
    source, losses = teacher_source(teacher, fold=False), []
    x = torch.randn(6, 3, 32, 32, generator=generator(0))
    invert(source.network, images.labels, x, InversionConfig(steps=8), source.mean_std, on_step=lambda s, i, t: losses.append(t['loss'].item()))
    assert losses[-1] < losses[0]
    config = settings_of(command, monkeypatch)
    data = long_tailed(config.data)
    adapted, first = config.its_teacher(data, CPU, False)[0], data.train.images[:1]
    place = next(i for i, x in enumerate(images.images) if torch.equal(x, first[0]))
    assert torch.allclose(adapted.adapt(clean_view(first, data.mean, data.std, data.img_size)), clean_view(images.images[place:place + 1], *source.mean_std, 32), atol=1e-5)


@pytest.mark.parametrize('names', (['a/b', 'a-b', 'c'], ['a', '..', 'c'], ['a', ' ', 'c']))
def test_class_names_that_are_no_folders(tmp_path, names):
    network = make_student(student_config('nextvit-nano', num_classes=3))
    save_weights(network, tmp_path/'net.safetensors', **about_student(network.config), mean=[.3], std=[.3], class_names=names)
    with pytest.raises(UserError, match='folders of their own'): make_images(tmp_path/'net.safetensors', tmp_path/'made', 2, FEW, quiet=True)
    assert not (tmp_path/'made').exists()


@pytest.mark.parametrize('preset, use_dist', (('efficientformer-nano', True), ('efficientformer-nano', False), ('nextvit-nano', False)))
def test_our_own_networks_with_batch_norms(tmp_path, preset, use_dist):
    network = make_student(student_config(preset, num_classes=3, use_dist=use_dist))
    save_weights(network, tmp_path/'net.safetensors', **about_student(network.config), mean=[.3], std=[.3])
    folder, losses = make_images(tmp_path/'net.safetensors', tmp_path/'made', 2, FEW, quiet=True), []
    assert read_made(folder).images.shape == (6, 1, 28, 28)
    source = teacher_source(tmp_path/'net.safetensors', fold=False)
    x, y = torch.randn(6, 1, 28, 28, generator=generator(0)), torch.tensor([0, 0, 1, 1, 2, 2])
    with listening(source.network) as distances:
        found, told = terms(source.network, distances, x, y, InversionConfig()), source.network(x)
    assert torch.isclose(found['ce'], torch.nn.functional.cross_entropy(told.avg, y)) and found['variety'] >= 0
    heard = []
    classifier(source.network).register_forward_pre_hook(lambda m, i: heard.append(i[0].shape))
    source.network(x)
    assert len(heard) == 1 and heard[0][0] == 6
    invert(source.network, y, x, InversionConfig(steps=8), source.mean_std, on_step=lambda s, i, t: losses.append(t['loss'].item()))
    assert losses[-1] < losses[0]


def test_a_student_competes(tmp_path):
    ours = teacher_source(TEACHER).about['class_names']
    network = make_student(student_config())
    save_weights(network, tmp_path/'net.safetensors', **about_student(network.config), mean=[.5], std=[.5], class_names=ours[::-1])
    config = dataclasses.replace(FEW, compete=5.)
    with pytest.raises(UserError, match='needs a student'): make_images(TEACHER, tmp_path/'made', 2, config)
    with pytest.raises(UserError, match='while compete is 0'): make_images(TEACHER, tmp_path/'made', 2, FEW, student=tmp_path/'net.safetensors')
    with pytest.raises(UserError, match='compete_form'): make_images(TEACHER, tmp_path/'made', 2, dataclasses.replace(config, compete_form='wrong'), student=TEACHER)
    assert not (tmp_path/'made').exists()
    made = [read_made(make_images(TEACHER, tmp_path/name, 2, c, quiet=True, student=s)).images
            for name, c, s in (('alone', FEW, None), ('two', config, tmp_path/'net.safetensors'), ('again', config, tmp_path/'net.safetensors'))]
    assert not torch.equal(made[0], made[1]) and torch.equal(made[1], made[2])
    with pytest.raises(UserError, match='other settings'): make_images(TEACHER, tmp_path/'two', 2, config, student=TEACHER)
    m = start_making(TEACHER, tmp_path/'two', 2, config, student=tmp_path/'net.safetensors')
    x = torch.randn(4, 1, 28, 28, generator=generator(0)).requires_grad_()
    (mean,), (std,) = m.source.mean_std
    theirs = network.eval()((x * std + mean - .5) / .5).avg
    assert torch.allclose(m.student.answer(x), theirs.flip(1), atol=1e-5)      # its own normalisation and its own order of classes
    assert torch.autograd.grad(competition(m.student.answer(x), m.source.network(x)), x)[0].abs().sum() > 0
    save_weights(make_student(student_config(num_classes=3)), tmp_path/'other.safetensors')
    with pytest.raises(UserError, match='other classes'): competitor(teacher_source(tmp_path/'other.safetensors'), m.source)


def test_pictures_are_whole_and_counted_only_when_their_batch_is_done(tmp_path, monkeypatch):
    config, saved = dataclasses.replace(FEW, batch_size=20), []
    real = Image.Image.save
    def breaks(self, path, *args, **kwargs):
        real(self, path, *args, **kwargs)
        saved.append(path)
        if len(saved) == 25: open(path, 'r+b').truncate(40); raise KeyboardInterrupt      # in the middle of a picture of the second batch
    monkeypatch.setattr(Image.Image, 'save', breaks)
    with pytest.raises(KeyboardInterrupt): make_images(TEACHER, tmp_path/'made', 4, config, quiet=True)
    monkeypatch.setattr(Image.Image, 'save', real)
    about = json.loads((tmp_path/'made'/'about.json').read_text())
    assert list(about['batches']) == ['0'] and len(read_made(tmp_path/'made')) == 20
    for path in (tmp_path/'made').rglob('*.png'): Image.open(path).load()      # each is whole
    assert len(read_made(make_images(TEACHER, tmp_path/'made', 4, config, quiet=True))) == 40
    path = next((tmp_path/'made'/'train').rglob('00001-*.png'))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match='cannot be read as a picture'): read_made(tmp_path/'made')
    path.unlink()
    with pytest.raises(UserError, match='not there any more'): read_made(tmp_path/'made')
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'made'/'train').rglob('00000-*.png')}
    assert len(read_made(make_images(TEACHER, tmp_path/'made', 4, config, quiet=True))) == 40
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())           # only the batch that missed one


def test_settings_that_cannot_be_made_leave_no_trace(tmp_path):
    with pytest.raises(UserError, match='use variety none'): make_images(TEACHER, tmp_path/'made', 1, FEW)
    assert not (tmp_path/'made').exists() and len(read_made(make_images(TEACHER, tmp_path/'made', 2, FEW, quiet=True))) == 20
    with pytest.raises(UserError, match='cannot be halved'): make_images(TEACHER, tmp_path/'odd', 2, dataclasses.replace(FEW, half_steps=1), size=27, quiet=True)
    assert len(read_made(make_images(TEACHER, tmp_path/'odd', 2, FEW, quiet=True))) == 20      # nothing had been made
    (tmp_path/'odd'/'about.json').write_text('{')
    with pytest.raises(UserError, match='damaged'): begun(tmp_path/'odd', dict(settings={}))


def test_without_variety_one_class_is_enough(tmp_path, resnet):
    torch.save(torchvision.models.resnet18(num_classes=1).state_dict(), resnet)
    given = dict(size=32, mean=IMAGENET[0], std=IMAGENET[1], quiet=True)
    with pytest.raises(UserError, match='two classes and 2 images'): make_images(resnet, tmp_path/'made', 3, FEW, **given)
    assert len(read_made(make_images(resnet, tmp_path/'made', 3, dataclasses.replace(FEW, variety='none'), **given), 3)) == 3
