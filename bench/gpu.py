"""On an NVIDIA GPU: images a second and share of the measured bf16 peak of our training step, with and without torch.compile.

    python bench/gpu.py

Without such a GPU it says so and ends.
"""
from common import options, table, write
import sys, time, warnings
import numpy as np, torch
from problems import random_data
from step import forward_operations
from vitnb.core import seed_of
from vitnb.data.batches import AugmentConfig, make_batch, resident
from vitnb.data.sampling import epoch_indices
from vitnb.methods.deit import distillation_loss
from vitnb.models.any_teacher import AdaptedTeacher
from vitnb.models.student import choose_attention, make_student, student_config
from vitnb.models.teacher import TeacherConfig, build_teacher, fold_batch_norms
from vitnb.training.schedule import make_optimiser

#        preset, pixels, patch, images a step, teacher
SHAPES = {'nano': ('nano', 32, 4, 1024, TeacherConfig(32, 3, 10, cosine=False)), 'tiny': ('tiny', 32, 4, 1024, TeacherConfig(32, 3, 10, cosine=False)),
          'base224': ('base', 224, 16, 128, TeacherConfig(50, 3, 1000, cosine=False, network='resnet50'))}


def seconds(act, repeats: int, warm: int = 3) -> float:
    "Median time of a call, waiting for the GPU"
    taken = []
    for i in range(warm + repeats):
        torch.cuda.synchronize(); start = time.perf_counter()
        act()
        torch.cuda.synchronize()
        if i >= warm: taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def peak(size: int = 8192) -> float:    # FLOP/s
    a, b = torch.randn(2, size, size, device='cuda', dtype=torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ b, 20)


def step(name: str, compiled: bool, cached: bool, batch_size: int | None = None):
    "A training step, images in it, operations in it, and the attention chosen"
    preset, size, patch, images, teacher = SHAPES[name]
    shape = student_config(preset, size, 3, teacher.num_classes, patch)
    images = batch_size or images
    data, model = resident(random_data(shape, max(1024, images)), torch.device('cuda')), make_student(shape)
    operations = 3 * forward_operations(model, shape, training=True)
    network = build_teacher(teacher)
    operations += 0 if cached else forward_operations(network, shape)
    model = model.cuda().train()
    attention = choose_attention(model, 'cuda', True)
    labels_of = AdaptedTeacher(fold_batch_norms(network), bf16=True).cuda()
    optimiser = make_optimiser(model, 'adamw', 1e-3, .05)
    recipe = AugmentConfig(crop='resized' if size > 64 else 'pad', pad=4, rand_augment=True)
    run = torch.compile(model) if compiled else model
    fixed = torch.zeros(images, dtype=torch.long, device='cuda')
    def act():
        which = epoch_indices(len(data.train), images, 0, 0, 0)
        batch = make_batch(data, recipe, images, True, 0, 0, 0, 'cuda', indices=which)
        torch.manual_seed(seed_of(0, 'forward', 0, 0))
        taught = fixed if cached else labels_of.label(batch.images).clone()
        with torch.autocast('cuda', torch.bfloat16): loss = distillation_loss(run(batch.images), batch.targets, taught)['loss']
        loss.backward()
        optimiser.step(); optimiser.zero_grad()
    return act, images, operations, attention


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    args = options(__doc__.splitlines()[0], shapes=list(SHAPES), repeats=20, batch=0)
    if not torch.cuda.is_available(): print('no NVIDIA GPU here: nothing to measure'); sys.exit(0)
    top, results = peak(), {}
    print(f'{torch.cuda.get_device_name()}: {top / 1e12:.0f} TFLOP/s in a bf16 matrix product of 8192³')
    for name in args.shapes:
        for compiled in (False, True):
            for cached in (False, True):
                torch.cuda.reset_peak_memory_stats()
                act, images, operations, attention = step(name, compiled, cached, args.batch or None)
                rate = images / seconds(act, args.repeats)
                label = name + (', compiled' if compiled else '') + (', labels kept' if cached else '')
                results[label] = dict(images_per_second=rate, share_of_peak=rate * operations / top, batch_size=images, attention=str(attention), peak_memory_gb=torch.cuda.max_memory_allocated() / 2**30)
                print(f'{label}: {rate:.0f} images/s, {results[label]["share_of_peak"]:.0%} of peak', flush=True)
                del act
    print(table(['step', 'images/s', 'of peak', 'GB'], [[n, f'{r["images_per_second"]:.0f}', f'{r["share_of_peak"]:.0%}', f'{r["peak_memory_gb"]:.1f}'] for n, r in results.items()]))
    write('gpu', dict(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda, peak_tflops=top / 1e12, steps=results), args.out)
