"""Kill a training at random moments and go on with it: is the end always, bit for bit, that of a run that was left alone?

    python tests/kills.py [--kills 50] [--seed 0] [--out data/results/kills.json]

Every trial starts a DeiT-LT run in a process of its own, ends it with SIGKILL after a random time, and resumes it (with a chance of
further kills on the way), until so many kills have struck a run that was under way. It prints a line a trial and exits with status 1 if
any differs. The moments follow from the seed. With --out it also writes what it found, with versions and processor.
"""
import argparse, hashlib, json, os, random, signal, sys, tempfile, time
from collections import Counter
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from vitnb.core import whole_file
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.registry import resume
from vitnb.methods.teacher import Teacher
from vitnb.training.loop import choose_bf16
from vitnb.training.runs import Run
from vitnb.training.train import this_machine, train


def in_a_process(work, after: float | None = None) -> tuple[bool, float]:
    "Do some work in a copy of this process, which is killed after so many seconds; whether it was, and how long it ran"
    start, child = time.monotonic(), os.fork()
    if child == 0:
        try: work(); os._exit(0)
        except BaseException as e:
            print(f'{type(e).__name__}: {e}', file=sys.stderr, flush=True)
            os._exit(1)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - start
        if done:
            if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL): raise SystemExit('a training failed')
            return os.waitstatus_to_exitcode(status) != 0, seconds
        if after is not None and seconds >= after:
            os.kill(child, signal.SIGKILL)
            after = None
        time.sleep(.002)


def outcome(path: Path) -> dict:
    "Checksums of all that a finished run says: weights, predictions, and every line but its time"
    run = Run(path)
    assert run.status['state'] == 'finished', run.status
    lines = [{k: v for k, v in line.items() if k != 'seconds'} for line in run.metrics]
    predictions = {k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in run.predictions.items()}
    weights = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(path.glob('*.safetensors'))}
    left = sorted(str(f.relative_to(path)) for f in path.rglob('*') if f.is_file() and f.name not in ('status.json', 'config.json'))
    return dict(lines=lines, predictions=predictions, weights=weights, files=left)


def where(path: Path) -> str:
    "What a killed run had come to"
    if not (path/'config.json').exists(): return 'before it began'
    if (path/'model.safetensors').exists(): return 'in the test'
    return f'in epoch {len(Run(path).metrics) + 1}' if list(path.glob('resume/state-*')) else 'before its first state'


def kills(count: int, seed: int, folder: Path) -> tuple[int, int, Counter]:
    "So many kills; how many trials ended as they should, how many there were, and where the kills struck"
    torch.set_num_threads(1)
    few = DataConfig(n_max=60, rho=10)
    data, draw, struck = long_tailed(few), random.Random(seed), Counter()
    part = lambda images, every: images.subset(range(0, len(images), every))
    data = replace(data, val=part(data.val, 20), test=part(data.test, 100))
    in_a_process(lambda: train(Teacher(data=few, depth=8, epochs=1, batch_size=32), 'teacher', folder/'teacher', data, quiet=True))
    config = DeiTLT(data=few, attention='explicit', epochs=3, batch_size=32, accumulate=2, patch_size=14, drop_path=.1, drw_start=.6, ema_decay=.9, clip_grad=1., teacher=str(folder/'teacher'))
    begin = lambda path, save_every: train(replace(config, save_every=save_every), 'deit-lt', path, data, quiet=True)
    in_a_process(lambda: begin(folder/'whole', 0.))
    _, whole = in_a_process(lambda: begin(folder/'warm', 0.))           # as long as the trials will take: the teacher's labels are kept by now
    expected, good, trial = outcome(folder/'whole'), 0, 0
    while sum(struck.values()) < count:
        path, save_every, places = folder/f'trial-{trial}', draw.choice([0., 0., .3]), []
        killed, _ = in_a_process(lambda: begin(path, save_every), draw.uniform(0, whole))
        while True:
            if killed: places.append(where(path))
            again = (lambda: resume(path, data, quiet=True)) if (path/'config.json').exists() else (lambda: begin(path, save_every))
            killed, _ = in_a_process(again, draw.uniform(0, whole) if draw.random() < .2 else None)
            if not killed: break
        found = outcome(path)
        same = found == expected
        if not same: print('\n'.join(f'  {k}: {found[k]} instead of {expected[k]}' for k in expected if found[k] != expected[k]))
        good, trial = good + same, trial + 1
        struck.update(places)
        print(f'{trial:3d} killed {", then ".join(places) or "after its end"}: {"the same end" if same else "ANOTHER END"}', flush=True)
    return good, trial, struck


if __name__ == '__main__':
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--kills', type=int, default=50)
    arguments.add_argument('--seed', type=int, default=0)
    arguments.add_argument('--out', type=Path)
    given, start = arguments.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        os.environ['VITNB_CACHE'] = str(Path(name)/'cache')
        good, trials, struck = kills(given.kills, given.seed, Path(name))
    print(f'{good} of {trials} runs ended as the one that was left alone; the {sum(struck.values())} kills struck {dict(struck)}')
    if given.out:
        found = dict(kills=sum(struck.values()), struck=dict(struck), runs=trials, same_end=good, seed=given.seed, seconds=round(time.monotonic() - start))
        with whole_file(given.out) as part: part.write_text(json.dumps(dict(command=f'python tests/kills.py --kills {given.kills} --seed {given.seed} --out data/results/kills.json', **found, machine=this_machine(torch.device('cpu'), choose_bf16('auto', torch.device('cpu')), 'explicit')), indent=1) + '\n')
    sys.exit(good != trials)
