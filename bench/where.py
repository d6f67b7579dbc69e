"""Where the time of our step goes, by kind of operation.

    python bench/where.py
"""
from common import options, table, write       # first: it sets the number of threads
import warnings
from collections import Counter
import torch
from torch.profiler import ProfilerActivity, profile
from problems import SHAPES, WORDS, random_data
from step import CPU, SEED, Ours
from vitnb.core import keep_freed_memory
from vitnb.models.student import choose_attention, make_student
from vitnb.models.teacher import TeacherConfig, make_teacher
from vitnb.training.loop import choose_bf16

KINDS = {'matrix products of the student': ('mm', 'addmm', 'bmm', 'baddbmm'), "the teacher's convolutions": ('mkldnn_convolution', 'convolution'), 'GELU': ('gelu', 'gelu_backward'),
         'copies and changes of type': ('copy_', 'cat', 'clone', 'fill_', 'zero_'), 'softmax': ('_softmax', '_softmax_backward_data'),
         'layer norm': ('native_layer_norm', 'native_layer_norm_backward'), 'sums, products, residuals': ('sum', 'mul', 'mul_', 'add', 'add_', 'div', 'div_', 'clamp_min', 'relu')}


def shares(name: str, steps: int) -> dict:
    "Per cent of the step's own CPU time by kind, and the rate of the matrix products' share"
    shape = SHAPES[name]
    network = make_teacher(TeacherConfig(32, shape.in_chans, shape.num_classes, cosine=False))
    ours = Ours(shape, network, random_data(shape), 128, choose_attention(make_student(shape), CPU, choose_bf16('auto', CPU)).kind)
    ours(); ours()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps): ours()
    times = Counter()
    for event in seen.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key.removeprefix('aten::') in names), 'everything else')
        times[kind] += event.self_cpu_time_total
    whole = sum(times.values())
    return dict(shape=WORDS[name], ms=whole / 1000 / steps, per_cent={k: 100 * times[k] / whole for k in [*KINDS, 'everything else']})


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    args = options(__doc__.splitlines()[0], shapes=tuple(SHAPES), steps=3)
    keep_freed_memory()
    torch.manual_seed(SEED)
    found = {name: shares(name, args.steps) for name in args.shapes}
    print(table(['per cent of the step', *[f['shape'] for f in found.values()]], [[k, *[f'{f["per_cent"][k]:.0f}' for f in found.values()]] for k in [*KINDS, 'everything else']]))
    write('profile', dict(seed=SEED, steps=args.steps, shapes=found), args.out)
