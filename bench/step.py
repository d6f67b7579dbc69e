"""One training step (data, teacher, student, optimiser): ours, an imitation of the official DeiT-LT loop, and timm's own task.

    python bench/step.py                        # all sizes, about 20 minutes of one core
    python bench/step.py --shapes nano --rounds 5

All variants get the same pictures, the same recipe (shift, mirror, RandAugment, erasing, Mixup or CutMix), the same kind of
teacher (ResNet-32) and 128 images a step. Each is a process of its own with one thread; they take turns, step by step, and
what is compared is CPU time.
"""
from common import apart, asked_apart, in_turn, options, peak_variants, peaks, ratio, table, write     # first: it sets the number of threads
import os, shutil, warnings
os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')     # the measured processes may not start others
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.optim import create_optimizer_v2
from timm.task import TokenDistillationTask
from timm.loss import SoftTargetCrossEntropy
from torch.utils.flop_counter import FlopCounterMode
from official import OfficialLoop, endless, loader, mixup, set_attention
from problems import SHAPES, WORDS, random_data
from show import times, type_of
from vitnb.core import keep_freed_memory, seed_of
from vitnb.data.batches import AugmentConfig, make_batch
from vitnb.data.sampling import epoch_indices
from vitnb.methods.deit import distillation_loss, distilling
from vitnb.models.any_teacher import AdaptedTeacher
from vitnb.models.student import choose_attention, make_student
from vitnb.models.teacher import TeacherConfig, fold_batch_norms, make_teacher
from vitnb.training.loop import choose_bf16
from vitnb.training.schedule import learning_rate, make_optimiser

CPU, SEED = torch.device('cpu'), 0
RECIPE = AugmentConfig(pad=4, rand_augment=True)      # what the other two do with PIL


class Ours:
    "A step as vitnb's loop makes it"
    def __init__(self, shape, teacher, data, batch_size: int, attention: str = 'auto', cached: bool = False, compiled: bool = False, device: torch.device = CPU, recipe: AugmentConfig = RECIPE):
        self.data, self.batch_size, self.i, self.steps, self.device, self.recipe = data, batch_size, 0, len(data.train) // batch_size, device, recipe
        self.bf16 = choose_bf16('auto', device)
        self.model = make_student(shape, SEED).train().to(device)
        self.attention = choose_attention(self.model, device, self.bf16, attention)
        self.teacher = AdaptedTeacher(fold_batch_norms(teacher), bf16=self.bf16).to(device)
        self.optimiser = make_optimiser(self.model, 'adamw', 2e-3, .05)
        self.loss = distilling(self.teacher)
        if compiled: self.model.compile()
        if cached:     # the labels of the same batches, asked for once
            taught = [self.teacher.label(self.batch(i).images).clone() for i in range(self.steps)]
            self.loss = lambda model, batch, epoch: distillation_loss(model(batch.images), batch.targets, taught[self.i])

    def batch(self, i: int):
        which = epoch_indices(len(self.data.train), self.batch_size, SEED, 0, i)
        return make_batch(self.data, self.recipe, self.batch_size, True, SEED, 0, i, self.device, indices=which)

    def learn(self, batch):
        torch.manual_seed(seed_of(SEED, 'forward', 0, self.i))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16): losses = self.loss(self.model, batch, 0)
        losses['loss'].backward()

    def update(self):
        for group in self.optimiser.param_groups: group['lr'] = learning_rate(self.i / self.steps, 2e-3, 40)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def __call__(self):
        self.learn(self.batch(self.i))
        self.update()
        self.i = (self.i + 1) % self.steps


class Timm:
    "A step as timm's training script makes it: TokenDistillationTask, AdamW, and timm's defaults elsewhere"
    def __init__(self, shape, teacher, data, batch_size: int, bf16: bool):
        model = VisionTransformerDistilled(**shape.for_timm())
        same = dict(mean=(0.,) * shape.in_chans, std=(1.,) * shape.in_chans)      # the teacher sees the student's normalisation
        model.pretrained_cfg = dict(same)
        teacher.pretrained_cfg = dict(same)
        self.task = TokenDistillationTask(model, teacher, criterion=SoftTargetCrossEntropy(), distill_type='hard', task_loss_weight=.5, verbose=False).train()
        self.optimiser = create_optimizer_v2(model, 'adamw', lr=5e-4, weight_decay=.05)
        self.batches, self.mixup, self.bf16 = endless(loader(data, batch_size)), mixup(shape.num_classes), bf16

    def __call__(self):
        images, targets = self.mixup(*next(self.batches))
        with torch.autocast('cpu', torch.bfloat16, enabled=self.bf16): out = self.task(images, targets)
        out['loss'].backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


class Official:
    "A step of the imitation, with its data"
    def __init__(self, shape, teacher, data, batch_size: int):
        self.loop, self.batches = OfficialLoop(shape, teacher, data), endless(loader(data, batch_size))

    def __call__(self): self.loop.step(*next(self.batches))


def forward_operations(model, shape, training: bool = False) -> float:
    "Floating-point operations of one image's forward pass (matrix products and convolutions); ours makes fewer of them in training"
    set_attention(model, fused=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter: model.train(training)(torch.randn(2, shape.in_chans, shape.img_size, shape.img_size))
    return counter.get_total_flops() / 2


def our_acts(make) -> dict:
    "Our step, and its pieces one by one"
    keep_freed_memory()
    ours, pieces = make(), make()
    batch, taught = pieces.batch(0), pieces.teacher.label(pieces.batch(0).images).clone()
    student = lambda model, batch, epoch: distillation_loss(model(batch.images), batch.targets, taught)
    def learn(): pieces.loss = student; pieces.learn(batch)
    return {'ours': ours, 'part: data': lambda: pieces.batch(0), 'part: teacher': lambda: pieces.teacher.label(batch.images), 'part: student': learn, 'part: optimiser': pieces.update}


def their_acts(make, shape, data, batch_size: int) -> dict:
    "The official-style step, and its data alone"
    batches, mix = endless(loader(data, batch_size)), mixup(shape.num_classes)
    return {'official-style': make(), "part: the others' data": lambda: mix(*next(batches))}


def kept_acts(make) -> dict:
    "Our step with the teacher's labels from before"
    keep_freed_memory()
    return {'ours, labels kept': make()}


def compiled_acts(make) -> dict:
    "Our step with a compiled student, its labels computed and from before"
    keep_freed_memory()
    return {'ours, compiled': make(False), 'ours, compiled, labels kept': make(True)}


COMPILER = shutil.which('g++') or shutil.which('clang++')      # without one torch.compile cannot be measured on a CPU
VARIANTS = ('official-style', 'timm, fp32', 'timm, bf16', 'ours', 'ours, labels kept', *(['ours, compiled', 'ours, compiled, labels kept'] if COMPILER else []))

def compare(name: str, rounds: int, batch_size: int) -> dict:
    "All variants at one size"
    shape, bf16 = SHAPES[name], choose_bf16('auto', CPU)
    attention = asked_apart(lambda: tuple(choose_attention(make_student(shape), CPU, bf16)))
    data, network = random_data(shape), make_teacher(TeacherConfig(32, shape.in_chans, shape.num_classes, cosine=False))
    student, ours, taught = forward_operations(make_student(shape), shape), forward_operations(make_student(shape), shape, training=True), forward_operations(network, shape)
    torch.manual_seed(SEED)
    given, operations = (shape, network, data, batch_size), peak_variants()[1]
    builders = [lambda: their_acts(lambda: Official(*given), shape, data, batch_size), lambda: {'timm, fp32': Timm(*given, False)}, lambda: {'timm, bf16': Timm(*given, True)},
                lambda: our_acts(lambda: Ours(*given, attention[0])), lambda: kept_acts(lambda: Ours(*given, attention[0], cached=True)),
                *([lambda: compiled_acts(lambda cached: Ours(*given, attention[0], cached=cached, compiled=True))] if COMPILER else []), lambda: peak_variants()[0]]
    with apart(builders) as acts: times = in_turn(acts, rounds, warm=2, report=name, clock=lambda act: act())
    peak = peaks(times, operations)
    return dict(shape=WORDS[name], tokens=(shape.img_size // shape.patch_size)**2 + 2, attention=f'{attention[0]} ({attention[1]})', bf16=bf16, batch_size=batch_size, rounds=rounds,
                gflop_per_image=dict(student_forward=student / 1e9, our_student_forward=ours / 1e9, teacher_forward=taught / 1e9, step=(3 * student + taught) / 1e9), peak=peak,
                variants={k: facts(times, k, 3 * (ours if 'ours' in k else student) + (0 if 'kept' in k else taught), batch_size, peak) for k in VARIANTS},
                parts={k.removeprefix('part: '): times[k].median for k in times if k.startswith('part: ')})


def facts(times, name: str, operations: float, batch_size: int, peak: dict) -> dict:
    "Rate, ratios and share of the peak of one variant"
    rate, kind = batch_size / times[name].median, 'fp32' if name in ('official-style', 'timm, fp32') or not torch.cpu._is_avx512_bf16_supported() else 'bf16'
    return dict(cpu_seconds=times[name].median, images_per_second=rate, gflops=rate * operations / 1e9, type=kind, share_of_peak=rate * operations / 1e9 / peak[kind],
                **{f'to_{b.split(",")[0].replace("-style", "")}{"_" + b.split(", ")[1] if "," in b else ""}': ratio(times[b], times[name])
                   for b in ('official-style', 'timm, fp32', 'timm, bf16')})


def show(result: dict) -> str:
    "One size as text"
    rows = [[k, f'{1000 * v["cpu_seconds"]:.0f}', f'{v["images_per_second"]:.0f}', times(v['to_official']), times(v[f'to_timm_{type_of(result)}']), f'{v["share_of_peak"]:.0%} of {v["type"]}']
            for k, v in result['variants'].items()]
    head = (f'\n{result["shape"]} ({result["gflop_per_image"]["step"]:.2f} GFLOP an image); attention in ours: {result["attention"]}; '
            f'peak {result["peak"]["fp32"]:.0f} fp32, {result["peak"]["bf16"]:.0f} bf16 GFLOP/s\n')
    pieces = 'pieces of our step, ms: ' + ', '.join(f'{k} {1000 * v:.0f}' for k, v in result['parts'].items())
    return head + '\n' + table(['variant', 'ms', 'images/s', '× official-style', f'× timm {type_of(result)}', 'of peak'], rows) + '\n\n' + pieces


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    args = options(__doc__.splitlines()[0], shapes=tuple(SHAPES), rounds=9, batch=128)
    results = {}
    for name in args.shapes:
        results[name] = compare(name, args.rounds * (1 if name == 'tiny' else 2), args.batch)
        print(show(results[name]), flush=True)
    write('step' if choose_bf16('auto', CPU) else 'step_fp32', dict(seed=SEED, shapes=results), args.out)
