"Several processes train as one: the same losses, to rounding, and every image of the test counted once"
import json, os, subprocess, sys
from pathlib import Path
import numpy as np, pytest

FEW = '--n-max 200 --rho 20 --epochs 2 --batch-size 48 --precision fp32 --student nano --patch-size 14 --drop-path .2'


def command(here: Path, processes: int, *arguments: str):
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}', '-m', 'vitnb'] if processes > 1 else [sys.executable, '-m', 'vitnb']
    return subprocess.run([*launch, *arguments], cwd=here, capture_output=True, text=True, timeout=600,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'VITNB_CACHE': str(here/'cache')})


def trained(here: Path, out: str, processes: int, arguments: str):
    done = command(here, processes, 'train', *arguments.split(), '--out', out)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count('report: ') == 1
    with np.load(here/out/'predictions.npz') as file: predictions = dict(file)
    return [json.loads(line) for line in (here/out/'metrics.jsonl').read_text().splitlines()], predictions, json.loads((here/out/'config.json').read_text())


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    "With a teacher"
    here = tmp_path_factory.mktemp('processes')
    done = command(here, 1, 'train', 'teacher', '--depth', '8', '--n-max', '200', '--rho', '20', '--epochs', '2', '--batch-size', '48', '--out', 'teacher')
    assert done.returncode == 0, done.stderr[-2000:]
    return here


@pytest.mark.parametrize('name, more, counts', [
    ('weights', '--drw-start .5 --accumulate 2 --beta .999 --clip-grad 1 --ema-decay .9', (2, 4)),
    ('repeats', '--repeats 3 --drw-start .5', (2,))])
def test_two_and_four_are_one(here, name, more, counts):
    arguments = f'deit-lt --teacher teacher {FEW} {more}'
    lines, predictions, config = trained(here, f'{name}-1', 1, arguments)
    assert config['machine']['processes'] == 1
    for count in counts:
        other_lines, other_predictions, other = trained(here, f'{name}-{count}', count, arguments)
        assert other['machine']['processes'] == count and other['config'] == config['config']
        for a, b in zip(lines, other_lines, strict=True):
            for part in ('loss', 'cls', 'dist', 'lr'): assert abs(a[part] - b[part]) < 1e-4 * max(1, abs(a[part])), (count, part, a[part], b[part])
        assert np.array_equal(predictions['labels'], other_predictions['labels'])        # each image once, in order
        assert predictions.keys() == other_predictions.keys()
        assert np.abs(predictions['dist'] - other_predictions['dist']).max() < .02


def test_a_batch_that_cannot_be_shared_is_named(here):
    done = command(here, 2, 'train', 'vit', '--n-max', '200', '--batch-size', '46', '--epochs', '1', '--out', 'odd')
    assert done.returncode != 0 and 'cannot be shared by 2 processes' in done.stderr and not (here/'odd').exists()


def test_one_goes_on_where_two_stopped(here):
    "A state says nothing of processes"
    from vitnb.training.states import saved_states
    arguments = f'vit {FEW}'.replace('--epochs 2', '--epochs 400')
    process = subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'vitnb', 'train', *arguments.split(), '--out', 'both'],
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
    finished = command(here, 1, 'resume', 'both')
    assert finished.returncode == 0 and 'processes was 2, is 1' in finished.stdout, finished.stdout + finished.stderr[-2000:]
    assert len((here/'both'/'metrics.jsonl').read_text().splitlines()) == done + 1
