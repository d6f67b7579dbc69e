"""Students trained on images made from a teacher, on none of the real ones, against as many real images, on Fashion-MNIST.

    python data/results/make_datafree.py [--size small] [--seeds 0 1 2] [--sets NAME ...] [--stages two one]
                                         [--folder runs/datafree] [--list] [--tiny]

Writes data/results/datafree_SIZE.json after each student and data/results/datafree_SIZE.png with images of each set.
What is written there is not run again, and a set of images that was begun is gone on with, so the command can be
stopped and started; with --list it says what is done and what is missing. The teacher is trained on all real images of
the package; the students see only one set. With `two` stages they are DearKD's: the teacher leaves after five sixths of
the epochs; with `one` it stays to the end. There is no validation part, and the last weights count. Seconds of the
processor are of all threads together; None where a teacher, a set or a student was not made in this very go. The picture
keeps the rows of sets that are not named.
--tiny is a rehearsal with a few steps; its numbers mean nothing and go to another file.
"""
import argparse, json, re, time
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from make_demo import once
from vitnb.core import generator, whole_file
from vitnb.data.batches import AugmentConfig
from vitnb.data.sets import DataConfig, ImageSet, long_tailed
from vitnb.methods.datafree import InversionConfig, as_pixels, features_of, grid_of, make_images, read_made, variety_of
from vitnb.methods.dearkd import DearKD
from vitnb.methods.teacher import Teacher
from vitnb.models.any_teacher import teacher_source

HERE, BATCH = Path(__file__).parent, 128
SIZES = dict(small=dict(per_class=100, steps=300, updates=1000, student=dict(student='nano'), teacher=dict(depth=8, epochs=20)),
             full=dict(per_class=1000, steps=1000, updates=10000, student=dict(student='tiny', patch_size=4, lr=1e-3), teacher=dict(depth=20, epochs=60)))
MADE = {    # set → how it is made
    'made': dict(variety='none'),
    'made, bounded variety': dict(variety='bounded'),
    'made, bounded variety, margin 0.4': dict(variety='bounded', margin=.4),
    'made, nearest twin pushed without end': dict(variety='free'),
    'made, all of a class pushed apart': dict(variety='all')}
SETS = ['real', *MADE, 'noise']
STAGES = {'two': {}, 'one': dict(switch=1.)}


def slug(name: str) -> str: return re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')
def sizes(given) -> dict: return SIZES[given.size] | (dict(per_class=13, steps=5, updates=2, teacher=dict(depth=8, epochs=1)) if given.tiny else {})
def real_images(tiny: bool = False) -> DataConfig: return DataConfig(rho=1., val_fraction=0., n_max=100 if tiny else None)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--size', choices=SIZES, default='small')
    arguments.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    arguments.add_argument('--sets', nargs='+', choices=SETS, default=SETS, metavar='NAME')
    arguments.add_argument('--stages', nargs='+', choices=STAGES, default=list(STAGES))
    arguments.add_argument('--folder', type=Path, default=Path('runs/datafree'))
    arguments.add_argument('--list', action='store_true')
    arguments.add_argument('--tiny', action='store_true')
    given = arguments.parse_args()
    given.folder = given.folder/f'{given.size}{"-tiny" if given.tiny else ""}'
    results = (given.folder if given.tiny else HERE)/f'datafree_{given.size}.json'
    rows = json.loads(results.read_text())['rows'] if results.exists() else []
    for seed in given.seeds: run_seed(given, results, rows, seed)


def run_seed(given, results: Path, rows: list[dict], seed: int):
    "What is missing of one seed: of the teacher, the sets and the students"
    done = {(r['set'], r['stages']) for r in rows if r['seed'] == seed}
    todo = [(name, stages) for name in SETS for stages in STAGES if name in given.sets and stages in given.stages and (name, stages) not in done]
    print(f'seed {seed}: {len(done)} students done, missing: {", ".join(f"{n} ({s})" for n, s in todo) or "none"}', flush=True)
    if given.list or not todo: return
    data, folder, size = long_tailed(real_images(given.tiny)), given.folder/f'seed-{seed}', sizes(given)
    begun, cpu = (folder/'teacher').exists(), time.process_time()
    teacher = once(Teacher(data=real_images(given.tiny), augment=AugmentConfig(erase=0, mixup=0, cutmix=0, smoothing=0), loss='ce', drw_start=1., sam_rho=0., batch_size=BATCH, seed=seed, **size['teacher']), 'teacher', folder/'teacher', data)
    taught = None if begun else time.process_time() - cpu
    print(f'  teacher: {teacher.status["test"]["out"]["overall"]:.1f} %', flush=True)
    for name, stages in todo:
        images, making = images_of(name, given, data, str(teacher.path), folder, seed)
        start, cpu = time.monotonic(), time.process_time()
        epochs = max(2, round(size['updates'] / (len(images) // BATCH)))
        config = DearKD(data=real_images(given.tiny), teacher=str(teacher.path), epochs=epochs, batch_size=BATCH, seed=seed, **size['student'] | STAGES[stages])
        place = folder/'students'/(slug(name) + ('' if stages == 'two' else f'-{stages}'))
        begun, run = place.exists(), once(config, 'dearkd', place, replace(data, train=images))
        cpu = None if begun else time.process_time() - cpu
        rows.append(dict(set=name, stages=stages, seed=seed, images=len(images), teacher=teacher.status['test']['out']['overall'], accuracy=run.status['test']['avg']['overall'], by_head={h: v['overall'] for h, v in run.status['test'].items()},
                         **about_images(images, data, str(teacher.path)), cpu_teacher=taught, cpu_making=making, cpu_training=cpu, seconds_training=run.status['seconds'], updates=epochs * (len(images) // BATCH), machine=run.config['machine']))
        with whole_file(results) as path: path.write_text(json.dumps(dict(maker='data/results/make_datafree.py', size=given.size, settings=size, rows=rows)) + '\n')
        print(f'  {name} ({stages}): {time.monotonic() - start:.0f} s, {rows[-1]["accuracy"]:.1f} %', flush=True)
    if seed == given.seeds[0]: draw(given, results, data, str(teacher.path), folder, seed)


def images_of(name: str, given, data, teacher: str, folder: Path, seed: int) -> tuple[ImageSet, float | None]:
    "A set of images with the labels they were made for, and how many seconds of the processor making it took, where that is known"
    n = sizes(given)['per_class']
    if name == 'real':
        kept = long_tailed(replace(real_images(given.tiny), n_max=n, subset_seed=seed + 1)).train
        return kept, 0.
    labels = torch.arange(data.num_classes).repeat_interleave(n)
    if name == 'noise':
        drawn = torch.randn(len(labels), data.channels, data.img_size, data.img_size, generator=generator(seed, 'noise set'))
        return ImageSet(as_pixels(drawn, data.mean, data.std), labels, data.train.class_names), 0.
    place, kept = folder/'made'/slug(name), folder/'made'/f'{slug(name)} seconds.json'
    begun, cpu = place.exists(), time.process_time()
    make_images(teacher, place, n, InversionConfig(steps=sizes(given)['steps'], seed=seed, **MADE[name]), device='cpu')      # whose seconds are noted
    if not begun: kept.write_text(json.dumps(time.process_time() - cpu))
    return read_made(place, data.channels), json.loads(kept.read_text()) if kept.exists() else None


def about_images(images: ImageSet, data, teacher: str) -> dict:
    "What the teacher says about a set, how varied it is, and how far its images are from the nearest real one of the class"
    source = teacher_source(teacher, fold=False)
    features, logits = features_of(source.network, images.images, *source.mean_std)
    real, _ = features_of(source.network, data.train.images, *source.mean_std)
    f, r = (torch.nn.functional.normalize(v, dim=1) for v in (features, real))
    nearest = torch.cat([torch.cdist(f[images.labels == c], r[data.train.labels == c]).amin(1) for c in range(data.num_classes)])
    return dict(right=100 * (logits.argmax(1) == images.labels).float().mean().item(), variety=variety_of(features, images.labels), nearest_real=nearest.mean().item())


def draw(given, results: Path, data, teacher: str, folder: Path, seed: int):
    "Four images of each of five classes (every second one), one row for each set; the file names its rows, and those of other sets stay"
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo
    path, rows = results.with_suffix('.png'), {}
    if path.exists():
        with Image.open(path) as old: names, pixels = json.loads(old.text['sets']), np.asarray(old)
        rows = dict(zip(names, np.split(pixels, len(names))))
    for name in given.sets:
        images, _ = images_of(name, given, data, teacher, folder, seed)
        rows[name] = 255 - np.asarray(grid_of(torch.cat([images.images[images.labels == c][:4] for c in range(0, 10, 2)]), 20))
    names, about = [name for name in SETS if name in rows], PngInfo()
    about.add_text('sets', json.dumps(names))
    with whole_file(path) as part: Image.fromarray(np.concatenate([rows[name] for name in names])).save(part, pnginfo=about, optimize=True)


if __name__ == '__main__': main()
