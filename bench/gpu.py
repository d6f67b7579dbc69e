"""On an NVIDIA GPU: our training step beside an imitation of the official DeiT-LT loop, and its share of the GPU's bf16 peak.

    python bench/gpu.py                             # nano, tiny and DeiT-B at 224 px
    python bench/gpu.py --shapes nano --rounds 20

What is timed is a row of steps between two waits for the GPU, as a training makes them; ours makes its batches meanwhile, the
official-style loop has them ready in memory, and its data loader is timed alone. The variants take turns in rounds, so
every ratio comes from one run. Each round is written down when it is done: the command can be stopped and started again.

    python bench/gpu.py --device cpu --shapes nano --batch 8 --rounds 1 --steps 1    # a rehearsal, which measures nothing
"""
from common import RESULTS, middle, options, table, write     # first: it sets the number of threads
import itertools, os, sys, time, warnings
from collections.abc import Callable
import numpy as np, torch
from official import OfficialLoop, endless, loader
from problems import SHAPES as SMALL, random_data
from show import times
from step import RECIPE, Ours, forward_operations
from vitnb.data.batches import AugmentConfig, resident
from vitnb.models.student import make_student, student_config
from vitnb.models.teacher import TeacherConfig, build_teacher
from vitnb.training.runs import read_json

#        student, images a step, teacher, how images are varied
RESNET32 = TeacherConfig(32, 3, 10, cosine=False)
SHAPES = {'nano': (SMALL['nano'], 1024, RESNET32, RECIPE), 'tiny': (SMALL['tiny'], 1024, RESNET32, RECIPE),
          'base224': (student_config('base', 224, 3, 1000, 16), 128, TeacherConfig(50, 3, 1000, cosine=False, network='resnet50'), AugmentConfig(crop='resized', rand_augment=True))}
OFFICIAL, PEAK = 'official-style', 'matrix product'


def wait(device: torch.device):
    if device.type == 'cuda': torch.cuda.synchronize()

def in_use(device: torch.device) -> int: return torch.cuda.memory_allocated() if device.type == 'cuda' else 0


def block(act: Callable, steps: int, device: torch.device) -> float:
    "Seconds that a step takes in a row of them, between two waits for the GPU"
    wait(device)
    start = time.perf_counter()
    for _ in range(steps): act()
    wait(device)
    return (time.perf_counter() - start) / steps


def pictures(name: str, batch_size: int):
    "Eight batches at least, and every class"
    shape = SHAPES[name][0]
    return random_data(shape, max(8 * batch_size, shape.num_classes))


def builders(name: str, batch_size: int, device: torch.device) -> dict[str, Callable[[], Callable]]:
    "What makes each variant; those of ours share the images on the GPU"
    shape, _, teacher, recipe = SHAPES[name]
    data, network = pictures(name, batch_size), build_teacher(teacher)
    here = resident(data, device)
    def official():
        loop, batches = OfficialLoop(shape, network, data, device=device), list(itertools.islice(loader(data, batch_size), 4))
        if device.type == 'cuda': batches = [(x.pin_memory(), y.pin_memory()) for x, y in batches]
        ready = itertools.cycle(batches)
        return lambda: loop.step(*next(ready))
    def ours(**how): return lambda: Ours(shape, network, here, batch_size, device=device, recipe=recipe, **how)
    made = {OFFICIAL: official, 'ours': ours(), 'ours, labels kept': ours(cached=True)}
    if device.type == 'cuda': made |= {'ours, compiled': ours(compiled=True), 'ours, compiled, labels kept': ours(compiled=True, cached=True)}
    return made


def square(device: torch.device) -> tuple[Callable, float]:
    "A large matrix product in bfloat16, and its operations"
    size = 8192 if device.type == 'cuda' else 64
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    return lambda: a @ b, 2 * size**3


def build(name: str, batch_size: int, device: torch.device) -> tuple[dict[str, Callable], dict[str, int]]:
    "All variants after two steps each, and the memory that each holds between steps"
    acts, holds = {}, {}
    for variant, make in builders(name, batch_size, device).items():
        before = in_use(device)
        acts[variant] = make()
        for _ in range(2): acts[variant]()
        wait(device)
        holds[variant] = in_use(device) - before
    return acts | {PEAK: square(device)[0]}, holds


def facts(name: str, batch_size: int, workers: int, acts: dict) -> dict:
    "What of a size is known before it is timed"
    shape, _, teacher, _ = SHAPES[name]
    forward = lambda training: forward_operations(make_student(shape), shape, training)
    return dict(batch_size=batch_size, workers=workers, attention=str(acts['ours'].attention), loader_images_per_second=loader_rate(name, batch_size, workers),
                operations=dict(student=forward(False), our_student=forward(True), teacher=forward_operations(build_teacher(teacher), shape)), rounds=[], memory={})


def loader_rate(name: str, batch_size: int, workers: int) -> float:
    "Images a second that the official-style loop's data loader makes with so many processes, when what was ready at the start is used up"
    batches, some = endless(loader(pictures(name, batch_size), batch_size, workers)), max(1, workers)
    for _ in range(3 * workers + 1): next(batches)
    start = time.perf_counter()
    for _ in range(4 * some): next(batches)
    return 4 * some * batch_size / (time.perf_counter() - start)


def one_round(acts: dict, holds: dict, steps: int, device: torch.device) -> tuple[dict[str, float], dict[str, int]]:
    "Every variant once: seconds a step, and the most memory that it took"
    seconds, most = {}, {}
    for variant, act in acts.items():
        before = in_use(device)
        if device.type == 'cuda': torch.cuda.reset_peak_memory_stats()
        seconds[variant] = block(act, steps, device)
        if device.type == 'cuda' and variant in holds: most[variant] = holds[variant] + torch.cuda.max_memory_allocated() - before
    return seconds, most


def summary(found: dict, product: float) -> dict:     # `product`: operations of the matrix product
    "Rates, ratios in the same rounds, and shares of the peak"
    rounds, operations, images, result = found['rounds'], found['operations'], found['batch_size'], {}
    for variant in rounds[0]:
        if variant == PEAK: continue
        column = lambda which: np.array([r[which] for r in rounds])
        step = 3 * operations['student' if variant == OFFICIAL else 'our_student'] + (0 if 'kept' in variant else operations['teacher'])
        result[variant] = dict(images_per_second=middle(images / column(variant)), to_official=middle(column(OFFICIAL) / column(variant)),
                               share_of_peak=float(np.median(images * step / column(variant) / (product / column(PEAK)))), gigabytes=found['memory'].get(variant, 0) / 2**30)
    return result


def show(name: str, found: dict) -> str:
    "One size as text"
    rows = [[k, f'{v["images_per_second"]["median"]:.0f}', times(v['to_official']), f'{v["share_of_peak"]:.0%}', f'{v["gigabytes"]:.1f}'] for k, v in found['summary'].items()]
    return f'\n{name}, {found["batch_size"]} images a step; attention in ours: {found["attention"]}; the official-style data loader alone, {found["workers"]} processes: ' \
           f'{found["loader_images_per_second"]:.0f} images/s\n\n' + table(['variant', 'images/s', '× official-style', 'of peak', 'GB'], rows)


def main():
    warnings.filterwarnings('ignore')
    args = options(__doc__.splitlines()[0], device='cuda', shapes=tuple(SHAPES), rounds=9, steps=20, batch=0)
    if args.device == 'cuda' and not torch.cuda.is_available(): print('no NVIDIA GPU here: nothing to measure'); return
    device, workers = torch.device(args.device), min(10, os.cpu_count() or 1) if args.device == 'cuda' else 0
    gpu = torch.cuda.get_device_name() if device.type == 'cuda' else 'none: a rehearsal on a CPU, whose numbers mean nothing'
    path = args.out or (RESULTS/'bench_gpu.json' if device.type == 'cuda' else None)
    asked, product = dict(gpu=gpu, cuda=torch.version.cuda, torch=torch.__version__, steps=args.steps, batch=args.batch), square(device)[1]
    before = read_json(path) if path and path.exists() else dict(asked=asked, shapes={})
    if before['asked'] != asked: sys.exit(f'{path} holds measurements of another kind ({before["asked"]}): give another --out, or delete it')
    saved = {k: before[k] for k in ('asked', 'shapes')}
    for name in args.shapes:
        found = saved['shapes'].get(name)
        if found is None or len(found['rounds']) < args.rounds:
            batch_size = args.batch or SHAPES[name][1]
            acts, holds = build(name, batch_size, device)
            found = saved['shapes'].setdefault(name, found or facts(name, batch_size, workers, acts))
            one_round(acts, holds, args.steps, device)
            while len(found['rounds']) < args.rounds:
                seconds, most = one_round(acts, holds, args.steps, device)
                found['rounds'].append(seconds)
                found['memory'] = {k: max(v, found['memory'].get(k, 0)) for k, v in most.items()}
                found['summary'] = summary(found, product)
                if path: write('gpu', saved, path)
            del acts
        print(show(name, found), flush=True)


if __name__ == '__main__': main()
