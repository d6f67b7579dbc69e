"Several processes train as one: the same losses, to rounding, and every image of the test counted once"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from test_bad_input import pictures

PROGRAM = """
import sys
from dataclasses import replace
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.teacher import Teacher
from vitnb.training.train import train
few = DataConfig(n_max=100, rho=20)
data = long_tailed(few)
data = replace(data, val=data.val.subset(range(0, len(data.val), 10)), test=data.test.subset(range(0, len(data.test), 41)))
processes = sys.argv[1]
if processes == '1': train(Teacher(data=few, depth=8, epochs=1, batch_size=48), 'teacher', 'teacher', data)
config = DeiTLT(data=few, attention='explicit', epochs=2, batch_size=48, precision='fp32', patch_size=14, drop_path=.2, drw_start=.5, teacher='teacher')
train(replace(config, accumulate=2, beta=.999, clip_grad=1., ema_decay=.9), 'deit-lt', f'weights-{processes}', data)
train(replace(config, repeats=3), 'deit-lt', f'repeats-{processes}', data)
if processes == '2': train(replace(config, repeats=3, shard=True), 'deit-lt', 'divided-2', data)
"""


def command(here: Path, processes: int, *arguments: str):
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}'] if processes > 1 else [sys.executable]
    done = subprocess.run([*launch, *arguments], cwd=here, capture_output=True, text=True, timeout=600,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'VITNB_CACHE': str(here/'cache')})
    return done


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "The same two trainings by one, two and four processes"
    here = tmp_path_factory.mktemp('processes')
    (here/'program.py').write_text(PROGRAM)
    for processes in (1, 2, 4):
        done = command(here, processes, 'program.py', str(processes))
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return here


@pytest.mark.parametrize('name, count', [('weights', 2), ('weights', 4), ('repeats', 2), ('repeats', 4), ('divided', 2)])
def test_two_and_four_are_one(here, name, count):
    "The same losses and predictions to rounding, with accumulation, clipping, weights, a moving average, repeated augmentation, and divided weights"
    def read(n):
        folder = here/f'{name}-{n}'
        with np.load(folder/'predictions.npz') as file: predictions = dict(file)
        return [json.loads(line) for line in (folder/'metrics.jsonl').read_text().splitlines()], predictions, json.loads((folder/'config.json').read_text())
    other_lines, other_predictions, other = read(count)
    if name == 'divided': name, other['config']['shard'] = 'repeats', False
    lines, predictions, config = read(1)
    assert (config['machine']['processes'], other['machine']['processes']) == (1, count) and other['config'] == config['config']
    for a, b in zip(lines, other_lines, strict=True):
        for part in ('loss', 'cls', 'dist', 'lr'): assert abs(a[part] - b[part]) < 2e-5 * max(1, abs(a[part])), (count, part, a[part], b[part])
    assert len(predictions['labels']) == 244 and np.array_equal(predictions['labels'], other_predictions['labels'])        # each image once, in order
    assert predictions.keys() == other_predictions.keys()
    for key in predictions: assert np.abs(predictions[key] - other_predictions[key]).max() < 1e-3, key


def test_a_batch_that_cannot_be_shared_is_named(here):
    done = command(here, 2, '-m', 'vitnb', 'train', 'vit', '--n-max', '200', '--batch-size', '46', '--epochs', '1', '--out', 'odd')
    assert done.returncode != 0 and 'cannot be shared by 2 processes' in done.stderr and not (here/'odd').exists()


def test_one_goes_on_where_two_stopped(here):
    "A state says nothing of processes, nor of how they divided the weights"
    from vitnb.training.states import saved_states
    pictures(here/'pets', dict(cat=60, dog=40))
    arguments = 'vit --dataset imagefolder:pets --image-folder-size 28 --epochs 4000 --batch-size 16 --precision fp32 --student nano --patch-size 14 --drop-path .2'
    process = subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'vitnb', 'train', *arguments.split(), '--shard', '--out', 'both'],
                               cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    import signal, time
    for _ in range(1200):
        if (here/'both'/'metrics.jsonl').exists(): break
        time.sleep(.1)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=90)
    assert json.loads((here/'both'/'status.json').read_text())['state'] == 'interrupted' and saved_states(here/'both'/'resume')
    content = json.loads((here/'both'/'config.json').read_text())
    content['config']['epochs'] = (done := len((here/'both'/'metrics.jsonl').read_text().splitlines())) + 1
    (here/'both'/'config.json').write_text(json.dumps(content))
    finished = command(here, 1, '-m', 'vitnb', 'resume', 'both')
    assert finished.returncode == 0 and 'processes was 2, is 1' in finished.stdout, finished.stdout + finished.stderr[-2000:]
    assert len((here/'both'/'metrics.jsonl').read_text().splitlines()) == done + 1


def test_precision_is_ours_whatever_accelerate_is_told(here):
    "A configuration of accelerate (the launcher hands it on in the environment) changes neither precision nor gradients"
    pictures(here/'few', dict(cat=20, dog=20))
    def losses(name, **environment):
        done = subprocess.run([sys.executable, '-m', 'vitnb', 'train', 'vit', '--dataset', 'imagefolder:few', '--image-folder-size', '32', '--batch-size', '8', '--epochs', '1', '--precision', 'fp32', '--attention', 'explicit', '--device', 'cpu', '--out', name],
                              cwd=here, capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1', **environment})
        return json.loads((here/name/'metrics.jsonl').read_text().splitlines()[0])['loss'] if done.returncode == 0 else done.stderr
    assert losses('plain') == losses('told', ACCELERATE_MIXED_PRECISION='bf16')
    assert 'use --accumulate' in losses('summed', ACCELERATE_GRADIENT_ACCUMULATION_STEPS='4') and not (here/'summed').exists()


LOST = """
import sys, torch
from dataclasses import dataclass, replace
from pathlib import Path
from vitnb.core import UserError
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.deit import DeiT
from vitnb.models.any_teacher import AdaptedTeacher, packaged_teachers
from vitnb.training.processes import rank_and_size
from vitnb.training.train import train

label, teachers, steps = AdaptedTeacher.label, set(), []
def unsteady(self, images):
    "The last process has two labels of each batch that change in bfloat16"
    teachers.add(self)
    rank, size = rank_and_size()
    labels = label(self, images)
    if self.bf16 and rank == size - 1: labels[:2] = (labels[:2] + 1) % 10
    return labels
AdaptedTeacher.label = unsteady

@dataclass(frozen=True)
class Lost(DeiT):
    "The last process loses its way in step 4 of epoch 2"
    def learner(self, data, device, bf16):
        learner = super().learner(data, device, bf16)
        def loss(model, batch, epoch):
            steps.append(1)
            losses, (rank, size) = learner.loss(model, batch, epoch), rank_and_size()
            return losses | dict(loss=losses['loss'] * float('nan')) if rank == size - 1 and epoch == 1 and len(steps) == 11 else losses
        return replace(learner, loss=loss)

few = DataConfig(n_max=60, rho=10)
data = long_tailed(few)
data = replace(data, val=data.val.subset(range(0, len(data.val), 50)))
config = Lost(data=few, student='nano', attention='explicit', precision='bf16', epochs=2, batch_size=32, patch_size=14, save_every=0, teacher=str(packaged_teachers()[0]))
try: train(config, 'lost', 'lost', data)
except UserError as e: said = str(e)
rank = rank_and_size()[0]
Path(f'said-{rank}').write_text(said)
Path(f'precision-{rank}').write_text(str([t.bf16 for t in teachers]))
"""


def test_processes_choose_and_stop_together(tmp_path):
    "What one of two measures about the teacher, both heed; where one finds a loss that is no number, both stop, at the same step and with the same words"
    (tmp_path/'lost.py').write_text(LOST)
    done = command(tmp_path, 2, 'lost.py')
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    read = lambda name: [(tmp_path/f'{name}-{rank}').read_text() for rank in (0, 1)]
    assert read('precision') == ['[False]', '[False]']
    assert read('said')[0] == read('said')[1] and 'loss became nan in epoch 2, step 4.' in read('said')[0]
    assert json.loads((tmp_path/'lost'/'status.json').read_text())['state'] == 'failed' and list((tmp_path/'lost'/'resume').glob('state-*'))
    machine = json.loads((tmp_path/'lost'/'config.json').read_text())['machine']
    assert machine['teacher'] == 'fp32' and machine['teacher_check'].endswith('labels would change in bfloat16')
