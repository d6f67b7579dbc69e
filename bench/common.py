"""Measuring, for every benchmark here: variants in turn, medians, ratios, and the machine's own peak.

Import this before torch: it sets the number of threads.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')     # CPU time of one thread does not depend on what the neighbours do
import argparse, json, multiprocessing, platform, sys, time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np, torch
from vitnb.core import whole_file
from vitnb.training.runs import versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT/'data'/'results'


@dataclass
class Times:
    "Seconds of each round"
    cpu: list[float] = field(default_factory=list)      # of all threads of this process
    wall: list[float] = field(default_factory=list)

    @property
    def median(self) -> float: return float(np.median(self.cpu))


def clocked(act: Callable[[], object]) -> tuple[float, float]:    # CPU seconds, wall seconds
    "How long it takes to do something once"
    cpu, wall = time.process_time(), time.perf_counter()
    act()
    return time.process_time() - cpu, time.perf_counter() - wall


def in_turn(variants: dict[str, Callable[[], object]], rounds: int, warm: int = 1, report: str = '', clock=clocked) -> dict[str, Times]:
    "Time the variants A B C A B C …, so that a busy minute falls on all of them"
    times = {name: Times() for name in variants}
    for i in range(warm + rounds):
        for name, act in variants.items():
            cpu, wall = clock(act)
            if i >= warm: times[name].cpu.append(cpu); times[name].wall.append(wall)
        if report and sys.stderr.isatty(): print(f'\r{report}: round {i + 1} of {warm + rounds} ', end='', file=sys.stderr, flush=True)
    if report and sys.stderr.isatty(): print('\r' + ' ' * 60 + '\r', end='', file=sys.stderr)
    return times


@contextmanager
def apart(builders: list[Callable[[], dict[str, Callable]]]) -> Iterator[dict[str, Callable[[], tuple[float, float]]]]:
    """Run what each builder makes in a process of its own; yields the acts by name, which return their CPU and wall seconds.

    How a process has used its memory before changes what new memory costs it, so programs that a person would run apart
    are measured apart: in one process the slower of them gains up to a fifth."""
    context, processes, acts = multiprocessing.get_context('fork'), [], {}
    def ask(pipe, name):
        pipe.send(name)
        return pipe.recv()
    for build in builders:
        ours, theirs = context.Pipe()
        processes.append((context.Process(target=_serve, args=(build, theirs), daemon=True), ours))
        processes[-1][0].start()
        theirs.close()
        acts |= {name: (lambda pipe=ours, name=name: ask(pipe, name)) for name in ours.recv()}
    try: yield acts
    finally:
        for process, pipe in processes: pipe.send(None); process.join()

def asked_apart(act: Callable[[], object]) -> object:
    "The answer of a process of its own (one that has computed gradients must not be divided)"
    with multiprocessing.get_context('fork').Pool(1, _remember, (act,)) as pool: return pool.apply(_recall)

def _remember(act): globals()['_act'] = act
def _recall(): return globals()['_act']()

def _serve(build, pipe):
    "Make the acts, say their names, and do what is asked for"
    acts = build()
    pipe.send(list(acts))
    while (name := pipe.recv()) is not None: pipe.send(clocked(acts[name]) if name in acts else None)


def ratio(base: Times, variant: Times) -> dict[str, float]:    # median, and the middle half of the rounds
    "How many times as fast the variant is as the base, from the rounds one by one"
    return middle(np.array(base.cpu) / np.array(variant.cpu))


def middle(numbers) -> dict[str, float]:
    "The median, and the ends of the middle half"
    low, median, high = np.quantile(numbers, [.25, .5, .75])
    return dict(median=float(median), low=float(low), high=float(high))


# The machine ---------------------------------------------------------------------------------------------------------

def matmul(rows: int, inner: int, columns: int, dtype: torch.dtype, seconds: float = .05) -> tuple[Callable[[], None], float]:
    "A matrix product repeated for about `seconds`, and how many floating-point operations that is"
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    once = 2 * rows * inner * columns
    repeats = max(1, round(seconds * 100e9 / once))
    def act():
        for _ in range(repeats): a @ b
    return act, once * repeats


PEAK_SHAPES = {'qkv 8448×192×576': (8448, 192, 576), 'fc1 8448×192×768': (8448, 192, 768), 'fc2 8448×768×192': (8448, 768, 192), '2048³': (2048,) * 3}
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16)


def peak_variants(seconds: float = .05) -> tuple[dict[str, Callable], dict[str, float]]:   # what to time, its operations
    "The matrix products that stand for the machine's peak: those of a ViT of width 192 (128 images, 66 tokens) and a large square"
    variants, operations = {}, {}
    for kind, dtype in DTYPES.items():
        for shape, sizes in PEAK_SHAPES.items():
            variants[f'{kind} {shape}'], operations[f'{kind} {shape}'] = matmul(*sizes, dtype, seconds)
    return variants, operations


def peaks(times: dict[str, Times], operations: dict[str, float]) -> dict[str, float]:    # GFLOP/s
    "Measured rates of the matrix products, with the best of each type as `fp32` and `bf16`"
    rates = {name: count / times[name].median / 1e9 for name, count in operations.items()}
    return rates | {kind: max(r for name, r in rates.items() if name.startswith(kind)) for kind in DTYPES}


def processor() -> str:
    "What the operating system calls the processor"
    try: lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError: return platform.processor()
    return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.machine())


def machine() -> dict:
    "What a result depends on, beside the code"
    from importlib.metadata import version
    return dict(processor=processor(), capability=torch.backends.cpu.get_cpu_capability(), bf16_instructions=bool(torch.cpu._is_avx512_bf16_supported()),
                threads=torch.get_num_threads(), **versions(), pillow=version('pillow'))


# Output --------------------------------------------------------------------------------------------------------------

def table(header: list[str], rows: list[list]) -> str:
    "Columns of equal width, as Markdown"
    cells = [header, *[[str(c) for c in row] for row in rows]]
    widths = [max(len(r[i]) for r in cells) for i in range(len(header))]
    line = lambda r: '| ' + ' | '.join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))) + ' |'
    ruler = '| ' + ' | '.join('-' * w if i == 0 else '-' * (w - 1) + ':' for i, w in enumerate(widths)) + ' |'
    return '\n'.join([line(cells[0]), ruler, *map(line, cells[1:])])


def rounded(content, digits: int = 4):
    "The same with numbers of so many significant digits"
    if isinstance(content, dict): return {k: rounded(v, digits) for k, v in content.items()}
    if isinstance(content, (list, tuple)): return [rounded(v, digits) for v in content]
    return float(f'{content:.{digits}g}') if isinstance(content, float) else content


def write(name: str, content: dict, out: Path | None = None):
    "Write data/results/bench_NAME.json"
    path = out or RESULTS/f'bench_{name}.json'
    command = ' '.join(['python', f'bench/{Path(sys.argv[0]).name}', *sys.argv[1:]])
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(rounded(dict(command=command, machine=machine(), **content)), indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
    print(f'written: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}')


def options(about: str, **defaults) -> argparse.Namespace:
    "Command line options with these names and defaults, and --out; a tuple has all that may be chosen from"
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, value in defaults.items():
        if isinstance(value, (list, tuple)): parser.add_argument(f'--{name}', nargs='+', default=list(value), type=type(value[0]), choices=value if isinstance(value, tuple) else None)
        else: parser.add_argument(f'--{name}', default=value, type=type(value))
    parser.add_argument('--out', type=Path, help='write here instead of data/results')
    return parser.parse_args()
