"""Four backbones under one budget on Fashion-MNIST, ρ = 100: accuracy by group, size, operations and latency.

    python data/results/make_backbones.py [--seeds 0 1 2] [--rows NAME ...] [--folder runs/backbones] [--latency] [--list] [--tiny]

Writes data/results/backbones_small.json after each run. What is written there is not run again, so the command can be
stopped and started; with --list it says what is done and what is missing. All students see the same images for as many
epochs, at the same batch size and rate. Each trained student is also written as ONNX and torch.export files, which are
compared with it on every test image. --latency measures all backbones in turns, on a machine that should do nothing
else. --tiny is a rehearsal of one epoch; its numbers mean nothing and go to another file.
"""
import argparse, json, re, tempfile, time
from dataclasses import asdict, replace
from pathlib import Path
import torch
from torch.utils.flop_counter import FlopCounterMode
from make_demo import once, row
from vitnb.core import whole_file
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.deploy import FORMATS, export_model, latencies
from vitnb.methods.vit import ViT
from vitnb.models.student import make_student, student_config
from vitnb.training.runs import versions

HERE = Path(__file__).parent
BACKBONES = {'ViT': 'nano', 'NiNformer': 'ninformer-nano', 'EfficientFormer': 'efficientformer-nano', 'Next-ViT': 'nextvit-nano'}
LABELS = dict(loss='balanced-softmax')
ROWS = {    # name → (backbone, method, its name, what is changed of its defaults)
    **{name: (name, ViT, 'vit', LABELS) for name in BACKBONES},
    'ViT, DeiT-LT': ('ViT', DeiTLT, 'deit-lt', {}),
    'EfficientFormer, DeiT-LT': ('EfficientFormer', DeiTLT, 'deit-lt', {})}


def slug(name: str) -> str: return re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    arguments.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='NAME')
    arguments.add_argument('--folder', type=Path, default=Path('runs/backbones'))
    arguments.add_argument('--latency', action='store_true')
    arguments.add_argument('--list', action='store_true')
    arguments.add_argument('--tiny', action='store_true')
    given = arguments.parse_args()
    given.folder = given.folder/('tiny' if given.tiny else 'small')
    results = (given.folder if given.tiny else HERE)/f'backbones_{"tiny" if given.tiny else "small"}.json'
    saved = json.loads(results.read_text()) if results.exists() else dict(maker='data/results/make_backbones.py', rows=[], shapes={}, latency=None)
    for seed in given.seeds: run_seed(given, results, saved, seed)
    if given.list: return
    saved['shapes'] = {name: shape_of(preset) for name, preset in BACKBONES.items()}
    if given.latency: saved['latency'] = measured(rounds=2 if given.tiny else 60)
    keep(results, saved)


def keep(results: Path, saved: dict):
    with whole_file(results) as path: path.write_text(json.dumps(saved) + '\n')


def run_seed(given, results: Path, saved: dict, seed: int):
    "What is missing of one seed"
    done = {r['name'] for r in saved['rows'] if r['seed'] == seed}
    todo = [name for name in given.rows if name not in done]
    print(f'seed {seed}: {len(done)} rows done, missing: {", ".join(todo) or "none"}', flush=True)
    if given.list or not todo: return
    data = long_tailed(DataConfig())
    for name in todo:
        backbone, method, method_name, changes = ROWS[name]
        start = time.monotonic()
        run = once(method(student=BACKBONES[backbone], seed=seed, epochs=1 if given.tiny else 40, **changes), method_name, given.folder/f'seed-{seed}'/slug(name), data)
        with tempfile.TemporaryDirectory() as folder: files = {f: export_model(run, Path(folder)/'file', f, data.test.images) for f in FORMATS}
        saved['rows'].append(dict(name=name, backbone=backbone, **row(run), exported={f: dict(difference=e.difference, images=e.images, merged=e.merged) for f, e in files.items()}))
        keep(results, saved)
        best = max(saved['rows'][-1]['test'].items(), key=lambda item: item[1]['overall'])
        print(f'  {name}: {time.monotonic() - start:.0f} s, {best[0]} {best[1]["overall"]:.1f} overall, {best[1]["tail"]:.1f} tail', flush=True)


def shape_of(preset: str) -> dict:
    "Parameters, and multiply-adds for one image"
    student = make_student(student_config(preset)).eval()
    c, attention = student.config, [m for m in student.modules() if hasattr(m, 'fused_attn')]
    for m in attention: m.fused_attn = False      # written out, every product is counted
    with FlopCounterMode(display=False) as counter, torch.no_grad(): student(torch.zeros(1, c.in_chans, c.img_size, c.img_size))
    return dict(preset=preset, parameters=sum(p.numel() for p in student.parameters()), multiply_adds=counter.get_total_flops() // 2)


def measured(rounds: int) -> dict:
    "Latency of every backbone, trained and merged, in every runtime; the weights make no difference"
    return dict({name: [asdict(r) for r in latencies(make_student(student_config(preset)).eval(), rounds=rounds)] for name, preset in BACKBONES.items()},
                machine=dict(versions(), cpu=torch.backends.cpu.get_cpu_capability()), threads=torch.get_num_threads())


if __name__ == '__main__': main()
