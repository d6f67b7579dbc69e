"""The numbers behind the paper's three figures, from the runs of make_deit_lt.py: attention distance, diversity and rank.

    python data/results/make_deit_lt_figures.py [--folder runs/deit-lt] [--images 1000]

Writes data/results/deit_lt_figures.json. The runs of make_deit_lt.py must be there (size small, pairs (0, 0), (1, 1), (2, 2)). Where a
run's metrics do not say how different its tokens were in each epoch, it is trained again for that (about three minutes each).
"""
import argparse, json
from pathlib import Path
import numpy as np, torch
from make_demo import once
from make_deit_lt import HERE, network, plan, slug
from dataclasses import replace
from vitnb.analysis.attention import attention_means, stream_attention
from vitnb.analysis.diversity import diversity
from vitnb.analysis.features import view_of_run
from vitnb.analysis.heads import uniform_distance
from vitnb.analysis.rank import ranks
from vitnb.core import UserError, whole_file
from vitnb.data.sets import long_tailed
from vitnb.training.load import load_student, load_test_images
from vitnb.training.runs import Run

PAIRS = ((0, 0), (1, 1), (2, 2))
ROWS = ('ViT', 'DeiT, in-distribution teacher', 'DeiT-LT', 'DeiT-LT, teacher without SAM', 'DeiT-LT, PaCo+SAM teacher', 'DeiT-LT without DRW')
OVER_TIME = ('DeiT, in-distribution teacher', 'DeiT-LT', 'DeiT-LT without DRW')
BATCH = 250


def spread_out(images, count: int):
    "As many images of every class, `count` in all"
    each = count // len(images.class_names)
    places = [torch.where(images.labels == c)[0][:each] for c in range(len(images.class_names))]
    return images.subset(torch.cat(places).sort().values)


def look(run: Run, count: int) -> dict:
    "Everything about one run's student"
    model, view = load_student(run), view_of_run(run)
    images = spread_out(load_test_images(run), count)
    means = attention_means(stream_attention(model, (view(some) for some in images.images.split(BATCH)), rows=False))
    found, apart = ranks(model, images, view, run.groups, ('cls', 'dist')), diversity(model, images, view, run.groups)
    keep = lambda values: np.round(values, 4).tolist()
    return dict(images=len(images), distance=keep(means.distance), prefix_mass=keep(means.prefix_mass), even=uniform_distance(means.layout.grid, means.layout.patch),
                points=found.points, groups=found.groups, group_images=found.images.tolist(), settings=found.settings,
                rank={kind: {what: keep(getattr(found, what)['rank'][:, t]) for what in ('values', 'low', 'high')} for t, kind in enumerate(found.kinds)},
                effective_rank={kind: keep(found.values['effective_rank'][:, t]) for t, kind in enumerate(found.kinds)},
                diversity=keep(apart.values), diversity_points=apart.points)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--folder', type=Path, default=Path('runs/deit-lt'))
    arguments.add_argument('--images', type=int, default=1000)
    given, rows = arguments.parse_args(), []
    for order, seed in PAIRS:
        folder, rows_of_pair = given.folder/'small'/f'order-{order}-seed-{seed}', plan('small', order, seed)
        data = long_tailed(rows_of_pair['ViT'][1].data)
        for name in ROWS:
            run = Run(folder/slug(name))
            if not run.path.exists(): raise UserError(f'{run.path} is missing: `python data/results/make_deit_lt.py --paired` trains it')
            rows.append(dict(name=name, order_seed=order, seed=seed, **look(run, given.images)))
            if name in OVER_TIME: rows[-1]['over_time'] = [round(line['diversity'], 4) for line in with_curve(run, name, rows_of_pair, order, seed, folder, data).metrics]
            with whole_file(HERE/'deit_lt_figures.json') as path: path.write_text(json.dumps(dict(maker=f'data/results/{Path(__file__).name}', machine=run.config['machine'], rows=rows)) + '\n')
            print(f'order {order}, seed {seed}: {name}', flush=True)


def with_curve(run: Run, name: str, rows: dict, order: int, seed: int, folder: Path, data) -> Run:
    "The run, or the same again when it was trained before its metrics said how different the tokens are"
    if 'diversity' in run.metrics[0]: return run
    method, config, teacher = rows[name]
    config = replace(config, teacher=str(network('small', order, seed, teacher, folder, data).path))
    return once(config, method, folder/f'{slug(name)}-with-curve', data)


if __name__ == '__main__': main()
