"""What listening to attention costs beside a plain forward pass: ours, timm's AttentionExtract, and hooks with fused attention off.

    python bench/attention.py                   # DeiT-Ti at 224 px, about 4 minutes of one core
    python bench/attention.py --rounds 3

Each variant is a process of its own with one thread; they take turns, round by round, and what is compared is CPU time. timm and the hooks give
full maps of every block and no more; "rows" are those of CLS and DIST, "numbers" are attention distance, entropy and prefix mass
of each head. Peak memory is that of a process of its own which streams so many images.
"""
from common import apart, in_turn, options, ratio, table, write     # first: it sets the number of threads
import json, subprocess, sys, warnings
from pathlib import Path
import timm, torch
from timm.utils import AttentionExtract
from vitnb.core import keep_freed_memory
from vitnb.analysis.attention import attention_maps, attention_means, head_numbers, stream_attention

TARGETS = {'all maps': 1.25, 'rows and numbers': 1.3, 'rows': 1.05}


def make(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def written_out(name: str) -> torch.nn.Module:
    "The model with attention written out, as tools need it that hook the dropout behind the softmax"
    model = make(name)
    for m in model.modules():
        if hasattr(m, 'fused_attn'): m.fused_attn = False
    return model


def hooked(model: torch.nn.Module):
    "Every map by a hook on `attn_drop`, kept as the tools keep them"
    def act(images):
        kept = []
        hooks = [m.register_forward_hook(lambda m, inputs, out: kept.append(out.cpu())) for n, m in model.named_modules() if n.endswith('attn_drop')]
        model(images)
        for h in hooks: h.remove()
        return torch.stack(kept, 1)
    return act


def variants(name: str, x: torch.Tensor) -> dict:
    "Name → a builder of what is done with the images"
    def alone(build):
        def act():
            keep_freed_memory()     # in all: otherwise the variant that keeps nothing returns its memory and pays for it anew at each pass
            model_act = build()
            return lambda: model_act(x)
        return act
    def ours(do): return alone(lambda: (lambda x, model=make(name): do(model, x)))
    return {'plain': alone(lambda: make(name)), 'all maps': ours(attention_maps), 'rows and numbers': ours(head_numbers),
            'rows': ours(lambda model, x: head_numbers(model, x, reductions=False)), 'one block': ours(lambda model, x: attention_maps(model, x, blocks=(-1,))),
            'plain, written out': alone(lambda: written_out(name)), 'hooks, written out': alone(lambda: hooked(written_out(name))),
            'timm AttentionExtract, written out': alone(lambda: AttentionExtract(written_out(name), method='hook'))}


def compare(name: str, images: int, rounds: int) -> dict:
    "CPU seconds of each variant, and how many times a plain pass that is, for one number of images at once"
    builders = variants(name, torch.randn(images, 3, 224, 224))
    with torch.no_grad(), apart([lambda n=n, b=b: {n: b()} for n, b in builders.items()]) as acts: times = in_turn(acts, rounds, warm=2, report=f'{images} images', clock=lambda act: act())
    return {k: dict(cpu_ms=1000 * t.median, times_plain=ratio(t, times['plain'])) for k, t in times.items()}


def peak_mb() -> float:
    "Largest resident size of this program so far (`ru_maxrss` would begin with that of the program which started it)"
    return next(int(line.split()[1]) / 1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))


def child(name: str, images: int, batch: int):
    "Stream random images through the model, keep the means, and print the peak"
    batches = (torch.randn(min(batch, images - i), 3, 224, 224) for i in range(0, images, batch))
    model = make(name)
    head_numbers(model, torch.randn(batch, 3, 224, 224))
    first = peak_mb()
    means = attention_means(stream_attention(model, batches))
    assert means.images == images
    print(json.dumps(dict(after_one_batch_mb=first, peak_mb=peak_mb())))


def memory(name: str, counts: list[int], batch: int) -> dict:
    "Peak memory by the number of images"
    ask = lambda n: subprocess.run([sys.executable, __file__, '--only', str(n), '--model', name, '--batch', str(batch)], capture_output=True, text=True, check=True)
    return {n: json.loads(ask(n).stdout.splitlines()[-1]) for n in counts}


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    args = options(__doc__.splitlines()[0], model='deit_tiny_distilled_patch16_224', batch=16, single=1, rounds=11, streamed=[32, 128, 256], only=0)
    if args.only: sys.exit(child(args.model, args.only, args.batch))
    results = {n: compare(args.model, n, args.rounds * (1 if n > 1 else 3)) for n in (args.batch, args.single)}
    for n, found in results.items():
        rows = [[k, f'{v["cpu_ms"]:.1f}', *(f'{v["times_plain"][q]:.2f}' for q in ('median', 'low', 'high')), f'{TARGETS[k]:.2f}' if n > 1 and k in TARGETS else ''] for k, v in found.items()]
        print(f'\n{args.model}, {n} images at once\n\n' + table(['what', 'CPU ms', '× plain', 'from', 'to', 'target'], rows), flush=True)
    peaks = memory(args.model, args.streamed, args.batch)
    print('\n' + table(['images streamed', 'after one batch, MB', 'peak, MB'], [[n, f'{p["after_one_batch_mb"]:.0f}', f'{p["peak_mb"]:.0f}'] for n, p in peaks.items()]))
    write('attention', dict(model=args.model, rounds=args.rounds, targets=TARGETS, images_at_once=results, memory_by_images=peaks), args.out)
