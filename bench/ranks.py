"""Peak memory of the ranks of tokens: DeiT-Ti, 12 blocks and the final norm, CLS, DIST and patches, bands from five parts.

    python bench/ranks.py

Each number of images is a process of its own that says its largest resident size after one forward pass, and after the ranks.
"""
from common import options, table, write
import json, resource, subprocess, sys, time


def child(images: int, side: int):
    "Build model and images, look once, work out the ranks, and print a line of JSON"
    import timm, torch
    from vitnb.analysis.features import View
    from vitnb.analysis.rank import ranks
    from vitnb.data.longtail import size_groups
    from vitnb.data.sets import ImageSet
    torch.set_num_threads(1)
    model = timm.create_model('deit_tiny_distilled_patch16_224', num_classes=10, img_size=side).eval()
    pixels = torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data, view = ImageSet(pixels, torch.arange(images) % 10, tuple('abcdefghij')), View((.5,) * 3, (.5,) * 3, side, 1., 3)
    with torch.inference_mode(): model(view(pixels[:1]))
    first, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    ranks(model, data, view, size_groups(range(10)))
    print(json.dumps(dict(before_mb=first / 1024, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, cpu_seconds=time.process_time() - start)))


if __name__ == '__main__':
    args = options(__doc__.splitlines()[0], side=224, images=10000, only=0)
    if args.only: sys.exit(child(args.only, args.side))
    results = {}
    for images in (args.images // 10, args.images):
        said = subprocess.run([sys.executable, __file__, '--only', str(images), '--side', str(args.side)], capture_output=True, text=True, check=True)
        results[f'{images} images'] = json.loads(said.stdout.splitlines()[-1])
    print(table(['ranks of', 'before, MB', 'peak, MB', 'ranks take, MB', 'CPU seconds'],
                [[n, f'{r["before_mb"]:.0f}', f'{r["peak_mb"]:.0f}', f'{r["peak_mb"] - r["before_mb"]:.0f}', f'{r["cpu_seconds"]:.0f}'] for n, r in results.items()]))
    write('ranks', dict(side=args.side, images=results), args.out)
