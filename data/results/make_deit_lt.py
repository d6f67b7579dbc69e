"""Every row of the DeiT-LT experiment on Fashion-MNIST, ρ = 100: teachers, baselines, DeiT-LT and its ablations.

    python data/results/make_deit_lt.py [--size small] [--orders 0 1 2] [--seeds 0 1 2] [--paired] [--rows NAME ...] [--folder runs/deit-lt] [--list]

Writes data/results/deit_lt_SIZE.json after each run. What is written there is not run again, so the command can be
stopped and started; with --list it says what is done and what is missing. On two cores a student of size small takes
two to four minutes, a teacher four to sixteen (PaCo is the longest). Size full wants a GPU. --paired runs seed k with
class order k only, instead of every pair; --rows runs only some rows.
"""
import argparse, json, re, time
from dataclasses import replace
from pathlib import Path
from make_demo import once, row
from vitnb.analysis.experts import load_experts
from vitnb.analysis.scores import mixed, scores
from vitnb.core import whole_file
from vitnb.data.batches import AugmentConfig
from vitnb.data.sets import long_tailed
from vitnb.methods.recipes import recipe
from vitnb.training.metrics import group_accuracy

HERE = Path(__file__).parent
SIZES = dict(small='fashion-mnist-lt', full='fashion-mnist-lt-full')      # names of recipes
FLAT = 'teacher LDAM+DRW+SAM'
ROWS = {    # name → (method, what is changed of its recipe, the row whose network teaches it)
    FLAT: ('teacher', dict(), None),
    'teacher LDAM+DRW': ('teacher', dict(sam_rho=0), None),
    'teacher PaCo+SAM': ('paco', dict(), None),
    'teacher CE, strong augmentation': ('teacher', dict(loss='ce', drw_start=1, sam_rho=0, augment=AugmentConfig()), None),
    'ViT': ('vit', dict(), None),
    'ViT + DRW': ('vit', dict(drw_start=.9), None),
    'ViT + balanced softmax': ('vit', dict(loss='balanced-softmax'), None),
    'DeiT, in-distribution teacher': ('deit', dict(), 'teacher CE, strong augmentation'),
    'DeiT-LT': ('deit-lt', dict(), FLAT),
    'DeiT-LT, PaCo+SAM teacher': ('deit-lt', dict(), 'teacher PaCo+SAM'),
    'DeiT-LT without DRW': ('deit', dict(), FLAT),
    'DeiT-LT, teacher without SAM': ('deit-lt', dict(), 'teacher LDAM+DRW'),
    'DeiT-LT, teacher sees clean images': ('deit-lt', dict(teacher_sees='clean'), FLAT),
    'DeiT-LT without a DIST head': ('deit-lt', dict(use_dist=False), FLAT),
    'DeiT-LT, mixing to the end': ('deit-lt', dict(mix_in_drw=True), FLAT)}


def slug(name: str) -> str: return re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')


def plan(size: str, order: int, seed: int) -> dict:
    "Row name → (method, settings, the row whose network teaches it)"
    def settings(method, changes):
        config = recipe(method, SIZES[size])
        return replace(config, data=replace(config.data, order_seed=order), seed=seed, **changes)
    return {name: (method, settings(method, changes), teacher) for name, (method, changes, teacher) in ROWS.items()}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--size', choices=SIZES, default='small')
    arguments.add_argument('--orders', type=int, nargs='+', default=[0, 1, 2])
    arguments.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    arguments.add_argument('--paired', action='store_true')
    arguments.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='NAME')
    arguments.add_argument('--folder', type=Path, default=Path('runs/deit-lt'))
    arguments.add_argument('--list', action='store_true')
    given = arguments.parse_args()
    pairs = list(zip(given.orders, given.seeds)) if given.paired else [(o, s) for s in given.seeds for o in given.orders]
    results = HERE/f'deit_lt_{given.size}.json'
    rows = json.loads(results.read_text())['rows'] if results.exists() else []
    for order, seed in pairs: run_pair(given, results, rows, order, seed)


def run_pair(given, results: Path, rows: list[dict], order: int, seed: int):
    "What is missing of one class order and seed"
    done = {r['name'] for r in rows if (r['order_seed'], r['seed']) == (order, seed)}
    todo = {name: what for name, what in plan(given.size, order, seed).items() if name not in done and name in given.rows}
    print(f'order {order}, seed {seed}: {len(done)} rows done, missing: {", ".join(todo) or "none"}', flush=True)
    if given.list or not todo: return
    data, folder = long_tailed(next(iter(todo.values()))[1].data), given.folder/given.size/f'order-{order}-seed-{seed}'
    for name, (method, config, teacher) in todo.items():
        if teacher: config = replace(config, teacher=str(network(given.size, order, seed, teacher, folder, data).path))
        start = time.monotonic()
        run = once(config, method, folder/slug(name), data)
        rows.append(dict(name=name, teacher=teacher, **row(run), **more(run)))
        with whole_file(results) as path: path.write_text(json.dumps(dict(maker='data/results/make_deit_lt.py', size=given.size, rows=rows)) + '\n')
        best = max(rows[-1]['test'].items(), key=lambda item: item[1]['overall'])
        print(f'  {name}: {time.monotonic() - start:.0f} s, {best[0]} {best[1]["overall"]:.1f} overall, {best[1]["tail"]:.1f} tail', flush=True)


def more(run) -> dict:
    "Scores beyond accuracy, and the average of probabilities instead of logits"
    experts = load_experts(run)
    kept = ('macro_f1', 'worst_class', 'harmonic_mean', 'ece_overall', 'ece_tail')
    found = {head: {k: v for k, v in scores(z, experts.labels, experts.counts, experts.groups).items() if k in kept} for head, z in experts.logits.items()}
    if 'dist' not in experts.logits: return dict(scores=found)
    both = mixed(experts.logits['cls'], experts.logits['dist'], .5, of='probabilities')
    return dict(scores=found, probabilities=group_accuracy(both, experts.labels, experts.groups))


def network(size: str, order: int, seed: int, name: str, folder: Path, data):
    "The run of a teacher; trained again when its row is written but its folder is gone"
    method, config, _ = plan(size, order, seed)[name]
    return once(config, method, folder/slug(name), data)


if __name__ == '__main__': main()
