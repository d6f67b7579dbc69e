"""DearKD against DeiT and a plain ViT as the data shrink, on balanced Fashion-MNIST.

    python data/results/make_dearkd.py [--size small] [--fractions 100 50 25 10 5] [--axes updates epochs] [--teachers fraction all]
                                       [--seeds 0 1 2] [--rows NAME ...] [--folder runs/dearkd] [--list] [--tiny]

Writes data/results/dearkd_SIZE.json after each run. What is written there is not run again, so the command can be
stopped and started; with --list it says what is done and what is missing. One seed of the rows that test the claim:
--axes updates --fractions 10 25 --teachers fraction --seeds 0. Both axes of less data are kept apart:
`updates` gives every fraction as many updates, `epochs` as many passes (so a tenth of the data has a tenth of the
updates). The teacher is trained on the same images (`fraction`) or on all of them (`all`, which leaks labels that the
student does not have). There is no validation part, and the last weights count: no epoch is chosen on the test images.
--tiny is a rehearsal of every row with a few updates; its numbers mean nothing and go to another file.
"""
import argparse, json, re, time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
import numpy as np, torch
from make_demo import once
from vitnb.analysis.attention import attention_maps
from vitnb.core import whole_file
from vitnb.data.batches import AugmentConfig, clean_view
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.dearkd import DearKD
from vitnb.methods.deit import DeiT
from vitnb.methods.teacher import Teacher
from vitnb.methods.vit import ViT
from vitnb.models.any_teacher import any_teacher
from vitnb.models.mhca import MhcaSettings, attention_distance, mhca_gates
from vitnb.models.student import described_student, load_weights, read_weights
from vitnb.training.loop import predict
from vitnb.training.metrics import group_accuracy

HERE, PER_CLASS, BATCH = Path(__file__).parent, 2000, 128
NO_MHCA, HALF = MhcaSettings(mhca_share=0.), MhcaSettings(mhca_share=.5)
SIZES = dict(small=dict(student=dict(student='nano'), teacher=dict(depth=8), updates=1400, epochs=20),       # 16 patches of 7 px
             fine=dict(student=dict(student='nano', patch_size=4), teacher=dict(depth=8), updates=1400, epochs=20),      # 49 of 4 px: three times as long
             full=dict(student=dict(student='tiny', patch_size=4, lr=1e-3), teacher=dict(depth=20), updates=14000, epochs=100))
ROWS = {    # name → (method, what is changed of its defaults, has a teacher)
    'ViT': (ViT, dict(mhca=NO_MHCA), False),
    'ViT + MHCA': (ViT, dict(mhca=HALF), False),
    'DeiT': (DeiT, dict(mhca=NO_MHCA), True),
    'DeiT + MHCA': (DeiT, dict(mhca=HALF), True),
    'DearKD': (DearKD, dict(), True),
    'DearKD, features weigh 5': (DearKD, dict(hidden=5.), True),
    'DearKD, one stage': (DearKD, dict(switch=1.), True),
    'DearKD without MHCA': (DearKD, dict(mhca=NO_MHCA), True),
    'DearKD without MHCA, one stage': (DearKD, dict(mhca=NO_MHCA, switch=1.), True),
    'ViT, float32': (ViT, dict(mhca=NO_MHCA, precision='fp32'), False)}       # as every row is trained where there are no bfloat16 instructions
METHODS = {ViT: 'vit', DeiT: 'deit', DearKD: 'dearkd', Teacher: 'teacher'}


def slug(name: str) -> str: return re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')
def per_class(fraction: float) -> int: return round(PER_CLASS * fraction / 100)
def steps_of(fraction: float) -> int: return 10 * per_class(fraction) // BATCH


def schedule(size: str, axis: str, fraction: float, tiny: bool = False) -> int:
    "Epochs: as many updates for every fraction, or as many passes"
    if tiny: return 2
    return max(2, round(SIZES[size]['updates'] / steps_of(fraction))) if axis == 'updates' else SIZES[size]['epochs']


def settings(size: str, name: str, axis: str, fraction: float, seed: int, tiny: bool = False):
    "The configuration of a row, without its teacher"
    method, changes, _ = ROWS[name]
    return method(data=images_of(fraction, seed), epochs=schedule(size, axis, fraction, tiny), batch_size=BATCH, seed=seed, **SIZES[size]['student'] | changes)


def teacher_settings(size: str, fraction: float, seed: int, tiny: bool = False) -> Teacher:
    "A CNN trained as DeiT's own teachers are: cross-entropy, on images as strongly augmented as the student's; for as many updates whatever the fraction"
    return Teacher(data=images_of(fraction, seed), augment=AugmentConfig(), loss='ce', drw_start=1., sam_rho=0., batch_size=BATCH, seed=seed,
                   epochs=schedule(size, 'updates', fraction, tiny), **SIZES[size]['teacher'])


def images_of(fraction: float, seed: int) -> DataConfig: return DataConfig(rho=1., n_max=per_class(fraction), val_fraction=0., subset_seed=seed + 1)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--size', choices=SIZES, default='small')
    arguments.add_argument('--fractions', type=float, nargs='+', default=[25, 10, 100, 50, 5])
    arguments.add_argument('--axes', choices=('updates', 'epochs'), nargs='+', default=['updates', 'epochs'])
    arguments.add_argument('--teachers', choices=('fraction', 'all'), nargs='+', default=['fraction', 'all'])
    arguments.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    arguments.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='NAME')
    arguments.add_argument('--folder', type=Path, default=Path('runs/dearkd'))
    arguments.add_argument('--list', action='store_true')
    arguments.add_argument('--tiny', action='store_true')
    given = arguments.parse_args()
    if given.tiny: globals().update(PER_CLASS=300)
    results = (given.folder if given.tiny else HERE)/f'dearkd_{given.size}{"_tiny" if given.tiny else ""}.json'
    rows = json.loads(results.read_text())['rows'] if results.exists() else []
    for axis in given.axes:
        for fraction in given.fractions:
            for seed in given.seeds: run_group(given, results, rows, axis, fraction, seed)


def wanted(given, fraction: float):
    "Row and teacher regime of everything that is asked for; with all the data both teachers are the same"
    for name in given.rows:
        for regime in (given.teachers if ROWS[name][2] else ['none']):
            if not (regime == 'all' and fraction == 100 and 'fraction' in given.teachers): yield name, regime


def run_group(given, results: Path, rows: list[dict], axis: str, fraction: float, seed: int):
    "What is missing of one axis, fraction and seed"
    done = {(r['name'], r['regime']) for r in rows if (r['axis'], r['fraction'], r['seed']) == (axis, fraction, seed)}
    todo = [what for what in wanted(given, fraction) if what not in done]
    print(f'{axis}, {fraction:g} %, seed {seed}: {len(done)} rows done, missing: {", ".join(f"{n} ({r})" for n, r in todo) or "none"}', flush=True)
    if given.list or not todo: return
    folder, data = given.folder/f'{given.size}{"-tiny" if given.tiny else ""}', long_tailed(images_of(fraction, seed))
    for name, regime in todo:
        config, look = settings(given.size, name, axis, fraction, seed, given.tiny), Look(data)
        if regime != 'none': config = replace(config, teacher=str(teacher_of(given, folder, fraction if regime == 'fraction' else 100, seed).path))
        look.at(config, steps_of(fraction))
        start = time.monotonic()
        run = once(watched(config, look), METHODS[ROWS[name][0]], folder/axis/f'{fraction:g}'/f'seed-{seed}'/f'{slug(name)}-{regime}', data)
        rows.append(dict(name=name, regime=regime, axis=axis, fraction=fraction, seed=seed, **row(run, data, look)))
        with whole_file(results) as path: path.write_text(json.dumps(dict(maker='data/results/make_dearkd.py', size=given.size, rows=rows)) + '\n')
        print(f'  {name} ({regime}): {time.monotonic() - start:.0f} s, {rows[-1]["accuracy"]:.1f} %', flush=True)


def teacher_of(given, folder: Path, fraction: float, seed: int):
    "The run of the teacher that saw that fraction"
    config = teacher_settings(given.size, fraction, seed, given.tiny)
    run = once(config, 'teacher', folder/'teachers'/f'{fraction:g}'/f'seed-{seed}', long_tailed(config.data))
    print(f'  teacher on {fraction:g} %: {run.status["test"]["out"]["overall"]:.1f} %', flush=True)
    return run


@dataclass
class Look:
    "What is noted while a student trains: gates every few updates, how far each block looks at the start, at the switch and at the end, and what each head says at the switch"
    data: object
    updates: int = 0
    moments: dict = field(default_factory=dict)      # update → its name
    every: int = 50
    gates: list = field(default_factory=list)        # [update, mean gate of each MHCA block]
    distances: dict = field(default_factory=dict)    # moment → attention distance of each block, in patches
    at_switch: dict = field(default_factory=dict)    # head → logits of the test images

    def at(self, config, steps: int):
        "Set the moments for a configuration"
        total, switch = config.epochs * steps, getattr(config, 'switch', 5 / 6)
        self.moments = {1: 'start', max(2, round(config.epochs * min(switch, 5 / 6)) * steps): 'switch', total: 'end'}
        self.every = max(1, total // 30)

    def __call__(self, model):
        self.updates += 1
        student = getattr(model, 'student', model)
        if self.updates % self.every == 0 and (gates := mhca_gates(student)): self.gates.append([self.updates, [round(g.mean().item(), 4) for g in gates.values()]])
        if moment := self.moments.get(self.updates):
            found = attention_maps(student, clean_view(self.data.test.images[:100].to(next(student.parameters()).device), self.data.mean, self.data.std))
            self.distances[moment] = [round(d, 4) for d in attention_distance(torch.from_numpy(found.maps), found.grid).mean((0, 2)).tolist()]
            if moment == 'switch': self.at_switch = predict(student, self.data.test.images, self.data.mean, self.data.std)


def watched(config, look: Look):
    "The same settings, with somebody who looks after each update"
    kind = type(config)
    class Watched(kind):
        def learner(self, *arguments): return replace(super().learner(*arguments), after_step=look)
    return Watched(**{f.name: getattr(config, f.name) for f in fields(kind)})


def row(run, data, look: Look) -> dict:
    "What the experiment keeps of a run: the last weights' accuracy, that of each head, agreement with the teacher"
    weights, about = read_weights(run.path/'model.safetensors')
    found, config = dict(accuracy=run.status['test']['avg']['overall'], answer='avg' if about['config']['use_dist'] else 'cls'), run.config['config']
    both = replace(described_student(about), use_dist=True).build().eval()      # the DIST head answers again, also where it was left behind
    load_weights(both, weights)
    logits = predict(both, data.test.images, data.mean, data.std)
    heads = {head: round(group_accuracy(z, data.test.labels, data.groups)['overall'], 3) for head, z in logits.items()}
    return dict(found, heads=heads, epochs=config['epochs'], updates=config['epochs'] * (len(data.train) // BATCH), agreement=agreement(config, data, logits, found['answer'], look.at_switch),
                gates=look.gates, distances=look.distances, seconds=run.status['seconds'], loss=[round(m['loss'], 4) for m in run.metrics][-1], machine=run.config['machine'])


def agreement(config: dict, data, logits: dict[str, np.ndarray], answer: str, at_switch: dict[str, np.ndarray]) -> dict | None:
    "How often a student says what its teacher says on test images, and how many of its errors are the teacher's; by head at the switch and at the end"
    if 'teacher' not in config: return None
    teacher = any_teacher(config['teacher'])[0]
    says = torch.cat([teacher.label(clean_view(part, data.mean, data.std)) for part in data.test.images.split(500)]).numpy()
    student, labels = logits[answer].argmax(1), data.test.labels.numpy()
    def same(heads): return {head: round(100 * (says == z.argmax(1)).mean(), 3) for head, z in heads.items()}
    return dict(teacher=100 * (says == labels).mean(), same=100 * (says == student).mean(), errors_shared=100 * (says == student)[student != labels].mean(), switch=same(at_switch), end=same(logits))


if __name__ == '__main__': main()
