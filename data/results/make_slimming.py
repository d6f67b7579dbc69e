"""EfficientFormer's slimming against uniform scaling, random plans and importance alone, on long-tailed Fashion-MNIST.

    python data/results/make_slimming.py [--size small] [--seeds 0 1 2] [--shares 60 40] [--rows NAME ...]
                                         [--stages supernet table search latency train] [--most N] [--folder runs/slimming] [--list] [--tiny]

Five stages, each of which goes on from where it was stopped: a supernet for each seed is trained; the latency table is measured; each
supernet is slimmed to the given shares (per cent) of the largest network's latency; the plans that were found are measured as whole
networks, and rivals are chosen that take as long or longer (the fastest of those that are not faster than the slimmed network, so a
doubt is in the rivals' favour); all are trained from the start with the same settings, as many images in the same order.
Supernet and search set a tenth of the images aside, by which the search chooses; when the plans are trained nothing is chosen any more,
so there is no validation part, and the last weights count.
Everything is written to data/results/slimming_SIZE.json after each run, which then is not run again; --list says what is missing.
The two stages that measure, `table` and `latency`, want a machine that does nothing else; they take seconds. Of the pieces the tenth
percentile of the repeats counts, and of whole networks the time of the processor (on one thread, OMP_NUM_THREADS=1), because
other programs disturb those least.
--most N ends after N trainings. --tiny is a rehearsal of every row; its numbers mean nothing and go to another file.
"""
import argparse, json, re, time
from dataclasses import asdict, replace
from pathlib import Path
import numpy as np, torch
from make_demo import once
from vitnb.core import UserError, whole_file
from vitnb.data.batches import AugmentConfig
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.slimming import (LatencyTable, Slimmed, Slimming, importances, largest_subnet, latency_table, load_supernet, measured_ms,
                                    random_plan, read_plan, search, slim_by_importance, uniform_plan)
from vitnb.models.student import read_weights
from vitnb.training.loop import choose_bf16
from vitnb.training.runs import versions

HERE, BATCH = Path(__file__).parent, 32       # images at a time in what is measured
PLAIN = AugmentConfig(erase=0, mixup=0, cutmix=0, smoothing=0)     # crop and flip: a few epochs are too short for more
SIZES = dict(small=dict(space=dict(widths=(16, 32, 64, 96), depths=(2, 2, 3, 3)), step=8, shared=dict(batch_size=64, lr=2e-3), epochs=(5, 4)),     # step: of the widths; epochs: of the supernet, and of each plan
             medium=dict(space=dict(widths=(16, 32, 64, 96), depths=(2, 2, 3, 3)), step=8, shared=dict(batch_size=64, lr=2e-3), epochs=(15, 20)),     # the same, trained long enough for blocks to matter
             full=dict(space=dict(widths=(48, 96, 160, 224), depths=(2, 2, 6, 4)), step=16, shared=dict(batch_size=128, lr=2e-3), epochs=(60, 60)))
ROWS = ('all of the supernet', 'slimmed', 'uniform scaling', 'importance alone', 'random plan 1', 'random plan 2', 'random plan 3')


def settings(kind, given, seed: int, val_fraction: float = 0., **more):
    "Settings of a supernet or of a plan: the same for all"
    epochs = SIZES[given.size]['epochs'][kind is Slimmed]
    return kind(data=DataConfig(subset_seed=seed + 1, n_max=100 if given.tiny else None, val_fraction=val_fraction), augment=PLAIN, loss='balanced-softmax', seed=seed, epochs=1 if given.tiny else epochs, **SIZES[given.size]['shared'], **more)


def supernet_settings(given, seed: int) -> Slimming: return settings(Slimming, given, seed, .1, **SIZES[given.size]['space'])


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--size', choices=SIZES, default='small')
    arguments.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    arguments.add_argument('--shares', type=int, nargs='+', default=[60, 40])
    arguments.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='NAME')
    arguments.add_argument('--stages', nargs='+', choices=STAGES, default=list(STAGES))
    arguments.add_argument('--most', type=int, default=10**9)
    arguments.add_argument('--folder', type=Path, default=Path('runs/slimming'))
    arguments.add_argument('--list', action='store_true')
    arguments.add_argument('--tiny', action='store_true')
    given = arguments.parse_args()
    found = Results((given.folder if given.tiny else HERE)/f'slimming_{given.size}{"_tiny" if given.tiny else ""}.json', given)
    for stage in given.stages: STAGES[stage](given, found)


class Results:
    "What has been found so far, in one file"
    def __init__(self, path: Path, given):
        self.path, self.folder = path, given.folder/f'{given.size}{"-tiny" if given.tiny else ""}'
        self.all = json.loads(path.read_text()) if path.exists() else dict(maker='data/results/make_slimming.py', size=given.size, table=None, searches=[], plans=[], rows=[])

    def write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as path: path.write_text(json.dumps(self.all) + '\n')

    def of(self, what: str, **wanted) -> list[dict]: return [r for r in self.all[what] if all(r[k] == v for k, v in wanted.items())]
    @property
    def table(self) -> LatencyTable: return LatencyTable(**self.all['table'])


def supernets(given, found: Results):
    "Train the supernet of each seed"
    for seed in given.seeds:
        folder = found.folder/f'seed-{seed}'/'supernet'
        done = (folder/'model.safetensors').exists()
        print(f'supernet of seed {seed}: {"trained" if done else "missing"}', flush=True)
        if done or given.list or given.most < 1: continue
        given.most -= 1
        config, start = supernet_settings(given, seed), time.process_time()
        once(config, 'slimming', folder, long_tailed(config.data))
        print(f'  {time.process_time() - start:.0f} s of the processor', flush=True)


def space(given): return supernet_settings(given, 0).shape(long_tailed(DataConfig(n_max=100)))


def table(given, found: Results):
    "Measure what the pieces take here"
    print(f'latency table: {"measured" if found.all["table"] else "missing"}', flush=True)
    if found.all['table'] or given.list: return
    start, measured = time.monotonic(), latency_table(space(given), BATCH, 3 if given.tiny else 25, step=SIZES[given.size]['step'], quantile=.1)
    found.all['table'] = asdict(measured)
    found.all['machine'] = dict(versions(), threads=torch.get_num_threads(), cpu=torch.backends.cpu.get_cpu_capability())
    found.write()
    print(f'  {len(measured.entries)} entries in {time.monotonic() - start:.0f} s', flush=True)


def searches(given, found: Results):
    "Slim the supernet of each seed"
    for seed in given.seeds:
        done, folder = found.of('searches', seed=seed), found.folder/f'seed-{seed}'/'supernet'
        print(f'search of seed {seed}: {"done" if done else "missing"}', flush=True)
        if done or given.list or not (folder/'model.safetensors').exists(): continue
        if not (path := folder.parent/'search.json').exists(): path.write_text(json.dumps(one_search(given, found, folder, seed)))
        found.all['searches'].append(json.loads(path.read_text()))
        found.write()


def one_search(given, found: Results, folder: Path, seed: int) -> dict:
    "The way of one search"
    start, (supernet, data) = time.process_time(), load_supernet(folder)
    data = replace(data, val=data.val.subset(range(0, len(data.val), 2)))       # 1 000 images, which takes half as long
    way = search(supernet, data, found.table, min(given.shares) / 100, choose_bf16('auto', torch.device('cpu')), 512)
    steps = [dict(words=s.words, kind=s.kind, plan=str(s.subnet.plan), ms=s.ms, accuracy=s.accuracy, tried=s.tried) for s in way]
    print(f'  {len(way) - 1} actions, {time.process_time() - start:.0f} s of the processor: {way[-1].subnet.plan}', flush=True)
    return dict(seed=seed, importance=importances(supernet), steps=steps, seconds=time.process_time() - start)


def nearest(candidates: list, ms: dict[str, float], target: float):
    "The fastest of those that are not faster than the target; where all are, the slowest"
    slower = [p for p in candidates if ms[str(p)] >= target]
    return min(slower, key=lambda p: ms[str(p)]) if slower else max(candidates, key=lambda p: ms[str(p)])


def latencies(given, found: Results):
    "Choose rivals of equal latency, measured as whole networks"
    base, table, wanted, step = space(given), found.table, [], SIZES[given.size]['step']
    start = largest_subnet(base)
    whole = table.ms(start.plan)
    for seed in given.seeds:
        for share in given.shares:
            done = found.of('plans', seed=seed, share=share)
            print(f'plans of seed {seed}, {share} %: {"measured" if done else "missing"}', flush=True)
            if not done and not given.list and (s := found.of('searches', seed=seed)): wanted.append((seed, share, s[0]))
    if not wanted: return
    pools = []
    for seed, share, s in wanted:
        slimmed, budget = read_plan(next(t['plan'] for t in s['steps'] if t['ms'] <= whole * share / 100)), whole * share / 100
        by_importance = [t.subnet.plan for t in slim_by_importance(start, s['importance'], table.ms, .85 * budget, step)]
        pools.append({'slimmed': [slimmed], 'uniform scaling': list(dict.fromkeys(uniform_plan(start.plan, f, 2) for f in np.arange(.2, 1., .03))),
                      'importance alone': [p for p in by_importance if table.ms(p) < 1.2 * budget] or by_importance[-1:],
                      **{f'random plan {i + 1}': [random_plan(start.plan, table.ms, .9 * budget, 1.15 * budget, 100_000 * seed + 10_000 * i + 100 * share + k, step) for k in range(2)] for i in range(3)}})
    plans = list({str(p): p for pool in pools for group in pool.values() for p in group}.values()) + [start.plan]
    begin, ms = time.monotonic(), {}
    ms = dict(zip(map(str, plans), measured_ms(plans, base, BATCH, 3 if given.tiny else 15, quantile=.25, clock=time.process_time)))
    print(f'  {len(plans)} networks measured in {time.monotonic() - begin:.0f} s', flush=True)
    for (seed, share, _), pool in zip(wanted, pools):
        target = ms[str(pool['slimmed'][0])]
        chosen = {'all of the supernet': start.plan} | {name: nearest(group, ms, target) for name, group in pool.items()}
        found.all['plans'].append(dict(seed=seed, share=share, chosen={name: dict(plan=str(p), measured=ms[str(p)], **by_table(table, p)) for name, p in chosen.items()}))
    found.write()


def by_table(table: LatencyTable, plan) -> dict:
    "The table's sum, where the table has the widths of a plan"
    try: return dict(table=table.ms(plan))
    except UserError: return dict(table=None)


def trainings(given, found: Results):
    "Train every plan, the same for all"
    for name in given.rows:
        for seed in given.seeds:
            for share in ([100] if name == ROWS[0] else given.shares):
                plans = found.of('plans', seed=seed) if share == 100 else found.of('plans', seed=seed, share=share)
                done = found.of('rows', name=name, seed=seed, share=share)
                if not done: print(f'{name}, {share} %, seed {seed}: missing', flush=True)
                if done or given.list or not plans or given.most < 1: continue
                given.most -= 1
                one_training(given, found, name, seed, share, plans[0]['chosen'][name])


def one_training(given, found: Results, name: str, seed: int, share: int, plan: dict):
    config, start = settings(Slimmed, given, seed, plan=plan['plan']), time.process_time()
    data = long_tailed(config.data)
    run = once(config, 'slimmed', found.folder/f'seed-{seed}'/f'{re.sub("[^a-z0-9]+", "-", name)}-{share}', data)
    test, weights = run.status['test']['avg'], read_weights(run.path/'model.safetensors')[0]
    scales = [w.abs().mean().item() for name, w in weights.items() if name.endswith('ls2.gamma')]
    found.all['rows'].append(dict(name=name, seed=seed, share=share, **plan, test=test, parameters=sum(p.numel() for p in read_plan(plan['plan']).config(space(given)).build().parameters()),
                                  scale=float(np.mean(scales)), epochs=config.epochs, updates=config.epochs * (len(data.train) // config.batch_size), loss=[m['loss'] for m in run.metrics][-1], seconds=run.status['seconds']))
    found.write()
    print(f'  {time.process_time() - start:.0f} s of the processor: {test["overall"]:.1f} %', flush=True)


STAGES = dict(supernet=supernets, table=table, search=searches, latency=latencies, train=trainings)

if __name__ == '__main__': main()
