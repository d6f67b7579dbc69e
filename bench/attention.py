"""What listening to attention costs beside a plain forward pass: ours, timm's AttentionExtract, and hooks with fused attention off.

    python bench/attention.py                   # DeiT-Ti at 224 px, about 4 minutes of one core
    python bench/attention.py --rounds 3

One process with one thread runs all variants in turn, round by round, and what is compared is CPU time. timm and the hooks give
full maps of every block and no more; "rows" are those of CLS and DIST, "numbers" are attention distance, entropy and prefix mass
of each head. Peak memory is that of a process of its own which streams so many images.
"""
from common import in_turn, options, ratio, table, write     # first: it sets the number of threads
import json, resource, subprocess, sys, warnings
import timm, torch
from timm.utils import AttentionExtract
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


def variants(name: str) -> dict:
    "Name → what is done with images"
    fused, explicit, timms = make(name), written_out(name), AttentionExtract(written_out(name), method='hook')
    return {'plain': fused, 'all maps': lambda x: attention_maps(fused, x), 'rows and numbers': lambda x: head_numbers(fused, x), 'rows': lambda x: head_numbers(fused, x, reductions=False),
            'one block': lambda x: attention_maps(fused, x, blocks=(-1,)), 'plain, written out': explicit, 'hooks, written out': hooked(explicit),
            'timm AttentionExtract, written out': timms}


def compare(name: str, images: int, rounds: int) -> dict:
    "CPU seconds and their ratio to a plain pass, for one number of images at once"
    x, acts = torch.randn(images, 3, 224, 224), variants(name)
    with torch.no_grad(): times = in_turn({k: lambda a=a: a(x) for k, a in acts.items()}, rounds, warm=1, report=f'{images} images')
    return {k: dict(cpu_seconds=t.median, cost=ratio(t, times['plain'])) for k, t in times.items()}


def child(name: str, images: int, batch: int):
    "Stream random images through the model, keep the means, and print the peak"
    batches = (torch.randn(min(batch, images - i), 3, 224, 224) for i in range(0, images, batch))
    model = make(name)
    head_numbers(model, torch.randn(batch, 3, 224, 224))
    first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    means = attention_means(stream_attention(model, batches))
    assert means.images == images
    print(json.dumps(dict(after_one_batch_mb=first, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)))


def memory(name: str, counts: list[int], batch: int) -> dict:
    "Peak memory by the number of images"
    ask = lambda n: subprocess.run([sys.executable, __file__, '--only', str(n), '--model', name, '--batch', str(batch)], capture_output=True, text=True, check=True)
    return {n: json.loads(ask(n).stdout.splitlines()[-1]) for n in counts}


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    args = options(__doc__.splitlines()[0], model='deit_tiny_distilled_patch16_224', batch=16, single=1, rounds=9, streamed=[32, 128, 256], only=0)
    if args.only: sys.exit(child(args.model, args.only, args.batch))
    results = {n: compare(args.model, n, args.rounds * (1 if n > 1 else 4)) for n in (args.batch, args.single)}
    for n, found in results.items():
        rows = [[k, f'{1000 * v["cpu_seconds"]:.1f}', *(f'{1 / v["cost"][q]:.2f}' for q in ('median', 'high', 'low')), f'{TARGETS[k]:.2f}' if n > 1 and k in TARGETS else ''] for k, v in found.items()]
        print(f'\n{args.model}, {n} images at once\n\n' + table(['what', 'CPU ms', '× plain', 'from', 'to', 'target'], rows), flush=True)
    peaks = memory(args.model, args.streamed, args.batch)
    print('\n' + table(['images streamed', 'after one batch, MB', 'peak, MB'], [[n, f'{p["after_one_batch_mb"]:.0f}', f'{p["peak_mb"]:.0f}'] for n, p in peaks.items()]))
    costs = {n: {k: dict(cpu_ms=1000 * v['cpu_seconds'], times_plain=1 / v['cost']['median'], low=1 / v['cost']['high'], high=1 / v['cost']['low']) for k, v in found.items()} for n, found in results.items()}
    write('attention', dict(model=args.model, rounds=args.rounds, targets=TARGETS, costs_by_images_at_once=costs, memory_by_images=peaks), args.out)
