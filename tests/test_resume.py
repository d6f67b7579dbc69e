"Nothing is lost: killed, interrupted, diverged, altered or out of disk, a run goes on from its last state or says why it cannot"
import json, os, re, shutil, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from vitnb.cli import main
from vitnb.core import UserError
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.registry import resume
from vitnb.methods.teacher import Teacher
from vitnb.methods.vit import ViT
from vitnb.models.student import read_weights, save_weights
from vitnb.training.runs import Run, open_run
from vitnb.training.states import read_state, saved_states
from vitnb.training.train import train
from vitnb.widgets.report import write_report
from test_bad_input import pictures

FEW = DataConfig(n_max=60, rho=10)
SMALL = dict(data=FEW, attention='explicit', epochs=3, batch_size=32, patch_size=14)


@pytest.fixture(scope='module')
def data():
    whole = long_tailed(FEW)
    part = lambda images, every: images.subset(range(0, len(images), every))
    return replace(whole, val=part(whole.val, 20), test=part(whole.test, 100))


@pytest.fixture(scope='module')
def teacher(data, tmp_path_factory):
    return str(train(Teacher(data=FEW, depth=8, epochs=1, batch_size=32), 'teacher', tmp_path_factory.mktemp('teacher')/'run', data, quiet=True).path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('VITNB_CACHE', str(tmp_path/'cache'))
    return tmp_path


def end(run: Run):
    "What must be the same: weights, and all numbers but the time"
    return ({f.name: read_weights(f)[0] for f in run.path.glob('*.safetensors')}, [{k: v for k, v in line.items() if k != 'seconds'} for line in run.metrics])


def assert_same(a: Run, b: Run):
    (weights, lines), (other_weights, other_lines) = end(a), end(b)
    assert lines == other_lines and weights.keys() == other_weights.keys()
    for name in weights: assert all(torch.equal(v, other_weights[name][k]) for k, v in weights[name].items()), name


def stopped_after(steps: int, monkeypatch, config, path, data, error=KeyboardInterrupt, method='vit'):
    "Train until the state of so many steps has been written, then fail"
    import vitnb.training.train as module
    keep, count = module.keep_state, []
    def once(t):
        keep(t)
        count.append(1)
        if len(count) == steps: raise error
    with monkeypatch.context() as patch:
        patch.setattr(module, 'keep_state', once)
        with pytest.raises(error): train(replace(config, save_every=0), method, path, data, quiet=True)
    return Run(path)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_killed_at_random_moments():
    "Eight kills; `python tests/kills.py` does fifty"
    said = subprocess.run([sys.executable, Path(__file__).with_name('kills.py'), '--kills', '8', '--seed', '3'], capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=600)
    assert said.returncode == 0 and re.search(r'(\d+) of \1 runs ended .* the [89] kills struck', said.stdout), said.stdout[-3000:] + said.stderr[-3000:]


def test_labels_from_the_cache_give_the_same_student(here, data, teacher):
    config = DeiTLT(**SMALL, teacher=teacher, drw_start=.6)
    runs = [train(replace(config, keep_labels=keep), 'deit-lt', here/name, data, quiet=True) for name, keep in (('online', False), ('first', True), ('cached', True))]
    steps = len(data.train) // 32
    assert 'labels' not in runs[0].status and runs[1].status['labels'] == dict(read=0, computed=3 * steps)
    assert runs[2].status['labels'] == dict(read=3 * steps, computed=0)
    for run in runs[1:]: assert_same(runs[0], run)
    other = train(replace(config, alpha=.3), 'deit-lt', here/'another-loss', data, quiet=True)
    assert other.status['labels']['computed'] == 0      # the batches are the same
    for name, changes in (('another-seed', dict(seed=1)), ('another-precision', dict(teacher_precision='bf16'))):
        assert train(replace(config, **changes), 'deit-lt', here/name, data, quiet=True).status['labels']['read'] == 0


@pytest.mark.parametrize('steady, kept', [(True, 'bf16'), (False, 'fp32')])
def test_the_teachers_precision_is_measured_once(here, data, monkeypatch, teacher, steady, kept):
    "A run that goes on keeps what it began with; one from before it was measured computes as its student does"
    from vitnb.models.any_teacher import AdaptedTeacher
    import vitnb.training.train as module
    label, used = AdaptedTeacher.label, []
    def watched(self, images):
        used.append('bf16' if self.bf16 else 'fp32')
        self.bf16, bf16 = False, self.bf16      # rounding as it happens to be on this machine is not what is tested
        try: labels = label(self, images)
        finally: self.bf16 = bf16
        return labels if steady or not bf16 else (labels + 1) % 10
    monkeypatch.setattr(AdaptedTeacher, 'label', watched)
    config = DeiTLT(**SMALL, teacher=teacher, precision='bf16', drw_start=.6)
    whole = train(config, 'deit-lt', here/'whole', data, quiet=True)
    assert whole.config['machine']['teacher'] == kept and used[-1] == kept and {'bf16', 'fp32'} == set(used)
    run = stopped_after(4, monkeypatch, replace(config, keep_labels=False), here/'run', data, method='deit-lt')
    shutil.copytree(run.path, here/'old')
    monkeypatch.setattr(module, 'changed_in_bf16', lambda *a, **k: pytest.fail('measured anew'))
    used.clear()
    resume(run.path, data, quiet=True)
    assert set(used) == {kept}
    assert_same(whole, run)
    content = json.loads((here/'old'/'config.json').read_text())
    del content['machine']['teacher'], content['machine']['teacher_check'], content['config']['teacher_precision']
    (here/'old'/'config.json').write_text(json.dumps(content))
    used.clear()
    resume(here/'old', data, quiet=True)
    assert set(used) == {'bf16'}


@pytest.mark.parametrize('changes', [dict(ema_decay=.9, clip_grad=1., accumulate=3), dict(sam_rho=.05, optimiser='sgd', lr=.05), dict(sampler='progressive')])
def test_stopped_in_the_middle(here, data, monkeypatch, changes):
    config = ViT(**SMALL, **changes)
    whole = train(config, 'vit', here/'whole', data, quiet=True)
    run = stopped_after(4, monkeypatch, config, here/'run', data)
    assert run.status['state'] == 'interrupted' and len(saved_states(run.path/'resume')) == 2
    resume(run.path, data, quiet=True)
    assert_same(whole, run)
    assert not (run.path/'resume').exists() and not (run.path/'progress.json').exists()
    (run.path/'resume').mkdir(), [(run.path/f).write_text('') for f in ('.lock', 'progress.json', 'resume/state-1')]      # killed after its end was written
    resume(run.path, data, quiet=True)
    assert not any((run.path/f).exists() for f in ('.lock', 'progress.json', 'resume'))
    assert len(run.status['resumed']) == 1
    if 'ema_decay' in changes: assert {'ema_avg', 'avg', 'best_avg'} <= run.status['test'].keys() and 'val_ema' in run.metrics[0]


def test_paco_goes_on_with_its_queue(here, data, monkeypatch):
    from vitnb.methods.paco import PaCo
    config = PaCo(data=FEW, depth=8, epochs=2, batch_size=32, queue=64, warmup_epochs=.1)
    whole = train(config, 'paco', here/'whole', data, quiet=True)
    run = stopped_after(9, monkeypatch, config, here/'run', data, method='paco')
    resume(run.path, data, quiet=True)
    assert_same(whole, run)


def test_a_torn_state_is_passed_over(here, data, monkeypatch, capsys):
    whole = train(ViT(**SMALL), 'vit', here/'whole', data, quiet=True)
    run = stopped_after(5, monkeypatch, ViT(**SMALL), here/'run', data)
    newest = saved_states(run.path/'resume')[0]
    newest.write_bytes(newest.read_bytes()[:-100])
    resume(run.path, data)
    assert 'is not a whole state' in capsys.readouterr().out
    assert_same(whole, run)


def test_lines_after_the_state_are_made_again(here, data, monkeypatch):
    whole = train(ViT(**SMALL), 'vit', here/'whole', data, quiet=True)
    run = stopped_after(3, monkeypatch, ViT(**SMALL), here/'run', data)
    with open(run.path/'metrics.jsonl', 'a') as file: file.write(json.dumps(whole.metrics[0] | dict(loss=99.)) + '\n{"epoch": 1, "lo')
    resume(run.path, data, quiet=True)
    assert_same(whole, run)


def test_what_resume_refuses(here, data, monkeypatch, teacher):
    run = train(ViT(**SMALL), 'vit', here/'whole', data, quiet=True)
    assert resume(run.path, data).path == run.path      # finished: nothing to do
    run = stopped_after(3, monkeypatch, ViT(**SMALL), here/'run', data)
    def refusal(change=lambda: None, data=data):
        shutil.copytree(run.path, here/'copy')
        change()
        with pytest.raises(UserError) as e: resume(here/'copy', data, quiet=True)
        shutil.rmtree(here/'copy')
        return str(e.value)
    def edit(name, **changes):
        path = here/'copy'/name
        content = json.loads(path.read_text())
        for key, value in changes.items():
            target = content
            *parts, last = key.split('__')
            for part in parts: target = target[part]
            target[last] = value
        path.write_text(json.dumps(content))
    images = replace(data, train=data.train.subset(range(1, len(data.train))))
    assert 'have changed since' in refusal(data=images)
    assert 'is being trained by process' in refusal(lambda: edit('status.json', state='running', pid=os.getpid()))
    assert 'unknown setting epohcs' in refusal(lambda: edit('config.json', config__epohcs=3))
    assert 'the setting lr' in refusal(lambda: edit('config.json', config__lr='fast'))
    assert 'lr=-1' in refusal(lambda: edit('config.json', config__lr=-1.))
    assert 'unknown method' in refusal(lambda: edit('config.json', method='vti'))
    assert 'settings have been changed' in refusal(lambda: edit('config.json', config__batch_size=16))
    assert 'this model needs (192,)' in refusal(lambda: edit('config.json', config__student='tiny'))
    def tear():
        for state in saved_states(here/'copy'/'resume'): state.write_bytes(b'torn')
    assert 'none of the states' in refusal(tear)
    with pytest.raises(UserError, match='no run folder'): resume(here/'nowhere')


def test_a_changed_teacher_is_found(here, data, monkeypatch, teacher):
    shutil.copytree(teacher, here/'teacher')
    config = DeiTLT(**SMALL, teacher='teacher')
    run = stopped_after(3, monkeypatch, config, here/'run', data, method='deit-lt')
    other = train(Teacher(data=FEW, depth=8, epochs=1, batch_size=32, seed=5), 'teacher', here/'other', data, quiet=True)
    shutil.copy(other.path/'model.safetensors', here/'teacher'/'model.safetensors')
    with pytest.raises(UserError, match='the teacher of .* has changed'): resume(run.path, data, quiet=True)


def test_a_loss_that_is_no_number_keeps_the_last_good_state(here, data, capsys):
    with pytest.raises(UserError, match='(loss (became nan|became inf|diverged)|became infinite or no number).*epoch') as e:
        train(ViT(**{**SMALL, 'epochs': 20}, optimiser='sgd', lr=1e6, warmup_epochs=4, save_every=0), 'vit', here/'run', data, quiet=True)
    run = open_run(here/'run')
    assert run.status['state'] == 'failed' and 'smaller lr' in run.status['error']
    for state in saved_states(run.path/'resume'):
        tensors, about = read_state(state)
        assert tensors['sums.loss'].isfinite() and all(v.isfinite().all() for k, v in tensors.items() if k.startswith('model.'))


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends(here, number):
    "The command line: stop it, see that it can go on, go on"
    pictures(here/'pets', dict(cat=40, dog=20))      # few images, so that the test at the end is over at once
    command = [sys.executable, '-m', 'vitnb', 'train', 'vit', '--dataset', 'imagefolder:pets', '--image-folder-size', '28', '--patch-size', '14', '--batch-size', '16', '--epochs', '3000', '--out', 'run']
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(900):
        if (here/'run'/'metrics.jsonl').exists(): break
        time.sleep(.1)
    process.send_signal(number)
    said = process.communicate(timeout=90)[1]
    assert process.returncode == 130 and 'vitnb resume' in said and 'Traceback' not in said, said
    run = open_run(here/'run')
    assert run.status['state'] == 'interrupted' and saved_states(run.path/'resume')
    config = json.loads((run.path/'config.json').read_text())
    done = len(run.metrics)
    config['config']['epochs'] = done + 1       # not to wait for all of them
    (run.path/'config.json').write_text(json.dumps(config))
    assert main(['resume', 'run']) == 0 and (run.path/'report.html').exists()
    assert [line['epoch'] for line in run.metrics] == list(range(done + 1))
    assert main(['resume', 'run']) == 0


def test_a_start_that_was_killed_at_once_can_be_repeated(here, data):
    (here/'run').mkdir()
    (here/'run'/'.status.json.abc.json').write_text('{')
    assert train(ViT(**{**SMALL, 'epochs': 1}), 'vit', here/'run', data, quiet=True).status['state'] == 'finished'
    with pytest.raises(UserError, match='exists already'): train(ViT(**SMALL), 'vit', here/'run', data, quiet=True)


def test_curves_for_tensorboard(here, data):
    pytest.importorskip('tensorboard')
    run = train(ViT(**{**SMALL, 'epochs': 2}, track='tensorboard'), 'vit', here/'run', data, quiet=True)
    assert list(run.path.rglob('events.out.tfevents*'))
    train(ViT(**{**SMALL, 'epochs': 1}, track='all'), 'vit', here/'all', data, quiet=True)


def test_a_tracker_that_is_not_installed_is_named(here, data):
    try: import wandb
    except ImportError: pass
    else: pytest.skip('it is installed')
    with pytest.raises(UserError, match='pip install wandb'): train(ViT(**SMALL, track='wandb'), 'vit', here/'run', data, quiet=True)
    assert not (here/'run').exists()


@pytest.mark.parametrize('harm', ['missing', 'altered', 'torn'])
def test_best_weights_that_are_lost_are_said_and_replaced(here, data, monkeypatch, capsys, harm):
    import vitnb.training.train as module
    monkeypatch.setattr(module, 'look', rising(module.look))      # each epoch is better than the one before
    run = stopped_after(12, monkeypatch, ViT(**SMALL), here/'run', data)      # in the second epoch
    best, done = run.path/'best.safetensors', len(run.metrics)
    assert best.exists() and 0 < done < 3
    if harm == 'missing': best.unlink()
    if harm == 'torn': best.write_bytes(best.read_bytes()[:-100])
    if harm == 'altered':
        weights, about = read_weights(best)
        save_weights({k: v + 1 for k, v in weights.items()}, best, **about)
    resume(run.path, data)
    assert 'best.safetensors' in capsys.readouterr().out and run.status['state'] == 'finished'
    chosen, about = read_weights(best)
    assert about['epoch'] >= done and 'best_avg' in run.status['test']


def rising(look):
    "`look`, with answers that grow more right from call to call"
    calls = []
    def rigged(model, data, part, bf16):
        calls.append(1)
        right = np.eye(data.num_classes)[part.labels.numpy()] * (np.arange(len(part)) < len(part) * len(calls) // 20)[:, None]
        return {k: (1e3 * right + v).astype(np.float32) for k, v in look(model, data, part, bf16).items()}
    return rigged


def test_best_weights_that_are_as_they_were_are_kept(here, data, monkeypatch, capsys):
    run = stopped_after(12, monkeypatch, ViT(**SMALL), here/'run', data)
    resume(run.path, data)
    assert 'best.safetensors' not in capsys.readouterr().out
    assert_same(run, train(replace(ViT(**SMALL), save_every=0), 'vit', here/'whole', data, quiet=True))


def test_lines_that_are_lost_are_said(here, data, monkeypatch, capsys):
    run = stopped_after(12, monkeypatch, ViT(**SMALL), here/'run', data)
    (run.path/'metrics.jsonl').unlink()
    resume(run.path, data)
    assert 'metrics.jsonl has 0 lines' in capsys.readouterr().out


def test_the_number_of_an_ended_process_used_again_is_no_hindrance(here, data, monkeypatch):
    run = stopped_after(3, monkeypatch, ViT(**SMALL), here/'run', data)
    status = json.loads((run.path/'status.json').read_text())
    (run.path/'status.json').write_text(json.dumps(dict(status, state='running', pid=os.getpid(), born=status['born'] - 1000)))
    assert run.status['state'] == 'stopped'
    (run.path/'status.json').write_text(json.dumps(dict(status, state='running', pid=os.getpid())))
    assert run.status['state'] == 'running'


def test_weights_that_are_no_numbers_after_the_last_update_are_no_end(here, data):
    with pytest.raises(UserError, match='infinite or no number in epoch 1'):
        train(ViT(**SMALL | dict(epochs=1, batch_size=len(data.train) // 2 * 2, lr=1e38, warmup_lr=1e38, warmup_epochs=0)), 'vit', here/'run', data, quiet=True)
    assert not (here/'run').exists() or open_run(here/'run').status['state'] == 'failed'


def test_a_diverged_state_is_not_kept(here, data):
    with pytest.raises(UserError, match='diverged'):
        train(ViT(**SMALL | dict(epochs=6, batch_size=64, lr=3., warmup_epochs=1, save_every=0, optimiser='sgd')), 'vit', here/'run', data, quiet=True)
    first = open_run(here/'run').metrics[0]['loss']
    states = [read_state(f) for f in saved_states(here/'run'/'resume')]
    assert states and all(float(tensors['sums.loss']) / about['step'] <= 10 * max(first, .1) for tensors, about in states if 'sums.loss' in tensors and about['step'])


def test_labels_of_files_that_were_written_again_are_not_read(here):
    from PIL import Image
    pictures(here/'pets', dict(cats=30, dogs=20))
    images = DataConfig('imagefolder:pets', image_folder_size=28)
    settings = dict(SMALL, data=images, batch_size=8, epochs=1)
    teacher = str(train(Teacher(data=images, depth=8, epochs=1, batch_size=8), 'teacher', here/'teacher', quiet=True).path)
    used = lambda name: train(DeiTLT(**settings, teacher=teacher), 'deit-lt', here/name, quiet=True).status['labels']['read']
    assert (used('first'), used('second')) == (0, long_steps(images))
    for f in (here/'pets').rglob('*.*'): os.utime(f, (1, 1))
    assert used('third') == 0


def long_steps(images: DataConfig) -> int: return len(long_tailed(images).train) // 8


def test_pictures_that_were_written_again_are_said(here, monkeypatch, capsys):
    pictures(here/'pets', dict(cats=30, dogs=20))
    config = ViT(**SMALL | dict(data=DataConfig('imagefolder:pets', image_folder_size=28), batch_size=8))
    said = 'moved or written since the run began'
    for name in ('left', 'touched'):
        run = stopped_after(3, monkeypatch, config, here/name, None)
        if name == 'touched': os.utime(here/'pets'/'cats'/'3.png', (1, 1)); os.utime(here/'pets'/'dogs'/'3.png', (1, 1))
        resume(run.path)
        assert (said in capsys.readouterr().out) == (name == 'touched')


def test_from_another_folder(here, monkeypatch, capsys):
    "Relative paths of images and teacher begin where the run was started; a project may be moved as a whole; what has gone is named"
    (project := here/'project').mkdir()
    pictures(project/'pets', dict(cats=30, dogs=20))
    images = ['--dataset', 'imagefolder:pets', '--image-folder-size', '16', '--batch-size', '8']
    with monkeypatch.context() as there:
        there.chdir(project)
        assert main(['train', 'teacher', *images, '--depth', '8', '--epochs', '1', '--out', 'runs/teacher']) == 0
        common = dict(data=DataConfig(dataset='imagefolder:pets', image_folder_size=16), teacher='runs/teacher', student='nano', patch_size=8, epochs=2, batch_size=8)
        whole = train(DeiTLT(**common), 'deit-lt', 'runs/whole', quiet=True)
        whole = Run(project/whole.path)
        run = Run(project/stopped_after(3, there, DeiTLT(**common), 'runs/stopped', None, method='deit-lt').path)
    pictures(here/'pets', dict(cats=3, dogs=3))     # what the same path leads to from here
    assert main(['resume', str(run.path)]) == 0 and 'moved' not in capsys.readouterr().out
    assert_same(whole, run)
    assert json.loads((run.path/'config.json').read_text())['config']['data']['dataset'] == 'imagefolder:pets'
    moved = project.rename(here/'elsewhere')
    with monkeypatch.context() as there:
        there.chdir(moved/'runs'/'whole')           # where the kernel of a notebook in the run folder works
        assert main(['analyse', '.', '--only', 'rank', 'teacher']) == 0 and main(['report', '.']) == 0
    assert 'no attention maps' not in capsys.readouterr().out
    shutil.rmtree(moved/'pets')
    (here/'pets').rename(here/'gone')
    assert main(['analyse', str(moved/'runs'/'stopped'), '--only', 'rank', 'teacher']) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in (str(project/'pets'), 'config.json', 'imagefolder:PATH')), said


def test_settings_changed_while_stopped_are_said(here, data, monkeypatch, capsys):
    "Also after another stop, at the end, and in the report"
    config = ViT(**SMALL)
    run = stopped_after(2, monkeypatch, config, here/'run', data)
    content = json.loads((run.path/'config.json').read_text())
    content['config'] |= dict(lr=.125)
    (run.path/'config.json').write_text(json.dumps(content))
    import vitnb.training.train as module
    keep, count = module.keep_state, []
    def once(t):
        keep(t)
        count.append(1)
        if len(count) == 2: raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, 'keep_state', once)
        resume(run.path, data)
    said = f'lr was {config.lr}, is 0.125'
    assert f'({said})' in capsys.readouterr().out
    resume(run.path, data)
    assert f'({said})' in capsys.readouterr().out and run.status['changed'] == [said]
    assert f'this command makes another run: {said}' in write_report(run).read_text()
