"Answers belong to images: other pictures under the same names are not taken for them, and a network sees them as in its training"
import json, shutil
import numpy as np, pytest, torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from vitnb.analysis.analyse import analyse
from vitnb.analysis.experts import load_experts
from vitnb.cli import main
from vitnb.core import UserError
from vitnb.data.sets import DataConfig, ImageSet
from vitnb.methods.deploy import file_metadata
from vitnb.training.load import load_student, load_test_images, teacher_of
from vitnb.training.runs import open_run
from vitnb.widgets.expert_view import ask_teacher, saved_teacher
from vitnb.widgets.state import RunSubject

SMALL = '--image-folder-size 24 --epochs 1 --batch-size 8 --device cpu'.split()
STUDENT = [*SMALL, '--student', 'nano', '--patch-size', '6']


def folder(root, seed):
    "The same names in the same numbers, other pixels"
    random = np.random.RandomState(seed)
    for part, number in (('train', 12), ('test', 4)):
        for name in ('ant', 'bee', 'cat'):
            (root/part/name).mkdir(parents=True)
            for i in range(number): Image.fromarray(random.randint(0, 255, (30, 28, 3), dtype=np.uint8)).save(root/part/name/f'{i}.png')
    return root


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "Two folders, a teacher of each, a student of the first by either, one without a teacher of each, and one that sees the middle of larger pictures"
    root = tmp_path_factory.mktemp('same')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv('VITNB_CACHE', str(root/'cache'))
        for name, seed in (('a', 0), ('b', 1)):
            images = ['--dataset', f'imagefolder:{folder(root/name, seed)}']
            assert main(['train', 'teacher', *images, *SMALL, '--depth', '8', '--out', f'teacher-{name}']) == 0
            assert main(['train', 'vit', *images, *STUDENT, '--out', f'vit-{name}']) == 0
        images = ['--dataset', f'imagefolder:{root/"a"}']
        for name, more in (('own', ['--teacher', 'teacher-a']), ('other', ['--teacher', 'teacher-b']), ('smaller', ['--teacher', 'teacher-a', '--teacher-size', '16'])):
            assert main(['train', 'deit', *images, *STUDENT, *more, '--out', name]) == 0
        assert main(['train', 'vit', *images, *STUDENT, '--image-folder-size', '32', '--img-size', '24', '--crop', 'resized', '--eval-crop', '.875', '--statistics', 'imagenet', '--out', 'cropped']) == 0
    return root


def test_runs_on_other_pictures_are_not_compared(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert main(['compare', 'vit-a', 'own']) == 0 and main(['report', 'vit-a', '--against', 'own']) == 0
    capsys.readouterr()
    assert main(['compare', 'vit-a', 'vit-b']) == 2 and 'other images' in capsys.readouterr().err
    assert main(['report', 'vit-a', '--against', 'vit-b']) == 2 and 'other images' in capsys.readouterr().err


def test_the_teachers_saved_answers_are_those_it_gives(here):
    "To the bit of what it says when it is asked; where it would say something else it is asked"
    for name in ('own', 'other', 'smaller'):
        subject = RunSubject(run := open_run(here/name))
        labels = load_experts(run).labels
        saved, asked = saved_teacher(run, labels), ask_teacher(subject, np.arange(len(labels)))
        assert (saved is not None) == (name == 'own')
        if saved is not None: assert np.abs(saved - asked).max() < 1e-5
    shutil.copytree(here/'own', here/'moved'/'own'); shutil.copytree(here/'teacher-b', here/'moved'/'teacher-a')      # another one in its place
    run = open_run(here/'moved'/'own')
    (here/'moved'/'own'/'config.json').write_text((here/'own'/'config.json').read_text().replace('"teacher": "teacher-a"', f'"teacher": "{here}/moved/teacher-a"'))
    assert saved_teacher(run, load_experts(run).labels) is None
    with pytest.raises(UserError, match='is not the file'): teacher_of(run)


def test_replaced_test_pictures_are_noticed(here):
    run = open_run(here/'vit-b')
    assert len(load_test_images(str(run.path))) == 12
    shutil.move(here/'b'/'test', here/'kept')
    shutil.copytree(here/'a'/'test', here/'b'/'test')
    try:
        with pytest.raises(UserError, match='not those'): load_test_images(run)
    finally:
        shutil.rmtree(here/'b'/'test'); shutil.move(here/'kept', here/'b'/'test')


def test_what_is_imported_sees_its_images_as_before(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    images = ['--dataset', 'imagefolder:a']
    assert main(['export', 'cropped', 'cropped.pth']) == 0 and '32 × 32 px, made 27 × 27, the middle 24 × 24 kept' in capsys.readouterr().out
    def same(name, *arguments):
        assert main(['import', *arguments, *images, '--out', name]) == 0
        before, after = (open_run(n).predictions for n in (name.split('-import')[0], name))
        head = 'out' if 'out' in before else 'cls'
        return np.abs(before[head] - after[head]).max() < 1e-5
    assert same('teacher-a-import', 'teacher-a/model.safetensors') and same('cropped-import', 'cropped/model.safetensors')
    assert 'does not say' not in capsys.readouterr().out
    assert same('cropped-import-2', 'cropped.pth', '--image-folder-size', '32', '--img-size', '24', '--eval-crop', '.875', '--statistics', 'imagenet')
    assert main(['compare', 'cropped', 'vit-a']) == 0                # the same pictures at another size
    capsys.readouterr()
    assert not same('cropped-import-3', 'cropped.pth') and 'cropped.pth does not say' in capsys.readouterr().out
    assert main(['import', 'cropped', *images]) == 2 and 'is a folder' in capsys.readouterr().err


def test_an_exported_file_says_how_a_picture_is_shown_to_it(here):
    "Followed word by word, from the picture to the pixels that the network was tested on"
    run = open_run(here/'cropped')
    student = load_student(run)
    about = {k: json.loads(v) for k, v in file_metadata(run, student).items()}
    assert 'made 32 x 32 pixels with bicubic interpolation (ImageOps.fit of Pillow)' in about['picture'] and about['view'] == 'the 32 x 32 pixels made 27 x 27 (bicubic with antialiasing), rounded to bytes, of these the middle 24 x 24'
    logits = []
    for path in sorted((here/'a'/'test').rglob('*.png')):
        pixels = torch.from_numpy(np.array(ImageOps.fit(Image.open(path), (32, 32), Image.BICUBIC)).transpose(2, 0, 1)).float()
        seen = F.interpolate(pixels[None], (27, 27), mode='bicubic', antialias=True).round().clamp(0, 255)[..., 2:26, 2:26] / 255
        mean, std = (torch.tensor(about[k]).view(1, 3, 1, 1) for k in ('mean', 'std'))
        with torch.no_grad(): logits.append(student((seen - mean) / std).cls)
    assert np.abs(torch.cat(logits).numpy() - run.predictions['cls']).max() < 1e-5


def test_images_that_a_run_cannot_have_are_refused(here):
    test = load_test_images(here/'vit-a')
    for images, word in ((ImageSet(test.images.float() / 255, test.labels, test.class_names), 'float32'), (ImageSet(test.images, test.labels.clamp(max=1), test.class_names[:2]), '2 classes')):
        with pytest.raises(UserError, match=word): analyse(here/'vit-a', images)
