"""How long until ours is as good as the official-style loop at its end: fashion-mnist-lt (ρ = 100), nano student, same epochs.

    python bench/time_to_accuracy.py                        # three seeds; about an hour and a half of one core
    python bench/time_to_accuracy.py --ours epochs=20       # other settings for ours

Both learn from the teacher that ships with vitnb, at the same learning rates, and re-weight DIST in the last tenth of the
epochs. The official-style loop has the official augmentation; ours is `vitnb train deit-lt` with its default one. Finished
runs are kept in the JSON file as they come, so the command can be stopped and started again.
"""
from common import RESULTS, options, rounded, table, write
import json, random, sys, tempfile, threading, time, warnings
from dataclasses import fields, replace
from pathlib import Path
import numpy as np, torch
from vitnb.core import UserError
from vitnb.data.batches import clean_view
from vitnb.data.sets import long_tailed
from vitnb.methods.deit import find_teacher
from vitnb.methods.deit_lt import DeiTLT
from vitnb.models.student import student_config
from vitnb.models.teacher import load_teacher
from vitnb.training.loop import with_short_warmup
from vitnb.training.train import train
from vitnb.training.losses import drw_epoch
from vitnb.training.runs import read_json, read_lines
from vitnb.training.schedule import learning_rate
from official import OfficialLoop, loader


def official(config: DeiTLT, data) -> dict:
    "Train the official-style loop; CPU seconds and validation accuracy after every epoch"
    torch.manual_seed(config.seed); np.random.seed(config.seed); random.seed(config.seed)
    config, start = with_short_warmup(config), time.process_time()
    teacher, _ = load_teacher(find_teacher('auto', data))
    shape = student_config(config.student, data.img_size, data.channels, data.num_classes, config.patch_size, config.drop_path)
    loop = OfficialLoop(shape, teacher, data, config.lr, drw_epoch(config.epochs, config.drw_start), config.beta)
    batches, images = loader(data, config.batch_size), clean_view(data.val.images, data.mean, data.std)
    cpu, accuracy = [], []
    for epoch in range(config.epochs):
        for i, (pictures, labels) in enumerate(batches):
            for group in loop.optimiser.param_groups:
                group['lr'] = learning_rate(epoch + i / len(batches), config.lr, config.epochs, config.warmup_epochs, config.warmup_lr, config.min_lr)
            loop.step(pictures, labels, epoch)
        accuracy.append(loop.accuracy(images, data.val.labels)); cpu.append(time.process_time() - start)
    return dict(cpu_seconds=cpu, accuracy=accuracy)


def ours(config: DeiTLT, data) -> dict:
    "The same for `vitnb train deit-lt`, whose metrics file is watched from a second thread"
    with tempfile.TemporaryDirectory() as folder:
        out, cpu, done = Path(folder)/'run', [], threading.Event()
        start = time.process_time()
        def watch():
            while True:
                last = done.is_set()
                cpu.extend([time.process_time() - start] * (len(read_lines(out/'metrics.jsonl')) - len(cpu)))
                if last: return
                done.wait(.2)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try: run = train(config, 'deit-lt', out, data, quiet=True)
        finally: done.set(); watcher.join()
        accuracy = [line['val']['avg']['overall'] / 100 for line in run.metrics]
    return dict(cpu_seconds=cpu[:len(accuracy)], accuracy=accuracy)


def settings(texts: list[str]) -> dict:
    "`field=value` as settings of DeiT-LT"
    pairs = dict(t.split('=', 1) for t in texts if t)
    known = {f.name for f in fields(DeiTLT)}
    for name in pairs.keys() - known: raise SystemExit(f'deit-lt has no setting {name}')
    def value(text):
        try: return json.loads(text.lower())
        except ValueError: return text
    return {k: value(v) for k, v in pairs.items()}


def smooth(accuracy: list[float], window: int = 3) -> np.ndarray:
    "The mean of each epoch and the two before it, so that one lucky epoch does not count"
    return np.array([np.mean(accuracy[max(0, i + 1 - window):i + 1]) for i in range(len(accuracy))])


def reached(theirs: dict, mine: dict) -> dict:
    "When ours got to the accuracy at which the other one ended"
    goal = smooth(theirs['accuracy'])[-1]
    at = np.flatnonzero(smooth(mine['accuracy']) >= goal)
    seconds = mine['cpu_seconds'][at[0]] if len(at) else None
    return dict(goal=float(goal), official_seconds=theirs['cpu_seconds'][-1], our_seconds=seconds, epoch=int(at[0]) + 1 if len(at) else None,
                our_final=float(smooth(mine['accuracy'])[-1]), ratio=theirs['cpu_seconds'][-1] / seconds if seconds else None)


def summary(runs: dict, seeds: list[int]) -> dict:
    "What the finished pairs say"
    return {str(s): reached(runs[f'official-style, {s}'], runs[f'ours, {s}']) for s in seeds if f'official-style, {s}' in runs and f'ours, {s}' in runs}


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    args = options(__doc__.splitlines()[0], epochs=DeiTLT().epochs, seeds=[0, 1, 2], ours=[''])
    path = args.out or RESULTS/'bench_time_to_accuracy.json'
    asked = dict(epochs=args.epochs, ours=settings(args.ours))
    saved = read_json(path) if path.exists() else dict(asked=asked, runs={})
    if saved['asked'] != asked: sys.exit(f'{path} holds runs with other settings ({saved["asked"]}): give another --out, or delete it')
    data, runs = long_tailed(DeiTLT().data), saved['runs']
    for seed in args.seeds:
        config = DeiTLT(epochs=args.epochs, seed=seed, device='cpu')
        for name, act in (('official-style', lambda: official(config, data)), ('ours', lambda: ours(replace(config, **asked['ours']), data))):
            if f'{name}, {seed}' in runs: continue
            try: runs[f'{name}, {seed}'] = rounded(act(), 6)
            except UserError as e: sys.exit(str(e))
            print(f'{name}, seed {seed}: {runs[f"{name}, {seed}"]["cpu_seconds"][-1]:.0f} s, {runs[f"{name}, {seed}"]["accuracy"][-1]:.1%}', flush=True)
            write('time_to_accuracy', dict(asked=asked, summary=summary(runs, args.seeds), runs=runs), path)
    found = summary(runs, args.seeds)
    cell = lambda v, form: '–' if v is None else format(v, form)
    print(table(['seed', 'goal', 'official-style, s', 'ours, s', 'in epoch', 'ours at its end', 'times as fast'],
                [[s, f'{r["goal"]:.1%}', f'{r["official_seconds"]:.0f}', cell(r['our_seconds'], '.0f'), cell(r['epoch'], 'd'), f'{r["our_final"]:.1%}', cell(r['ratio'], '.2f')] for s, r in found.items()]))
    ratios = [r['ratio'] for r in found.values() if r['ratio']]
    if ratios: print(f'mean of {len(ratios)} seeds: {np.mean(ratios):.2f} times as fast' + ('' if len(ratios) == len(found) else f'; {len(found) - len(ratios)} did not get there'))
