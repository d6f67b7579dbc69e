"""Run the demo for several class orders and write demo.json and the README's picture: about twenty minutes each on two cores.

    python data/results/make_demo.py [FOLDER] [ORDER ...]

Each class order gets its own teacher, trained on exactly its long-tailed images; then the student without a
teacher and DeiT-LT. Run folders are kept in FOLDER (default runs/demo-orders), and what is finished there is
not run again, so the command can be stopped and started. The first teacher (order seed 0) is the one in
data/teachers/.
"""
import json, platform, shutil, sys
from dataclasses import replace
from pathlib import Path
from vitnb.analysis.experts import load_experts
from vitnb.core import whole_file
from vitnb.data.sets import DataConfig, long_tailed
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.teacher import Teacher
from vitnb.methods.vit import ViT
from vitnb.training.train import train
from vitnb.training.runs import Run
from vitnb.widgets.figures import expert_accuracy

HERE = Path(__file__).parent
SEEDS = (0,)


def once(config, method: str, folder: Path, data) -> Run:
    "The finished run in `folder`, trained now if it is not there"
    run = Run(folder)
    if folder.exists() and run.status['state'] == 'finished': return run
    if folder.exists(): shutil.rmtree(folder)
    return train(config, method, folder, data, quiet=not sys.stderr.isatty())


def row(run: Run) -> dict:
    "What the experiment keeps of a run"
    config, machine = run.config, run.config['machine']
    experts = load_experts(run)
    test = experts.by_group | {f'best_{h}': a for h, a in load_experts(run, 'best').by_group.items()}
    return dict(method=config['method'], order_seed=config['config']['data']['order_seed'], seed=config['config']['seed'],
                test=test, by_class={h: dict(zip(experts.class_names, a.round(1).tolist())) for h, a in experts.by_class.items()},
                seconds=run.status['seconds'], epochs=config['config']['epochs'],
                classes=[config['data']['class_names'][c] for c in sum((config['data']['groups'][g] for g in ('head', 'mid', 'tail')), [])],
                data=config['data']['fingerprint'], machine=machine)


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else 'runs/demo-orders')
    orders, rows = [int(s) for s in sys.argv[2:]] or [0, 1, 2], []
    for order in orders:
        config = DataConfig(order_seed=order)
        data = long_tailed(config)
        teacher = once(Teacher(data=config), 'teacher', folder/f'order-{order}'/'teacher', data)
        rows.append(row(teacher))
        if order == 0: shutil.copy(teacher.path/'model.safetensors', HERE.parent/'teachers'/'fashion-mnist-lt-100.safetensors')
        for seed in SEEDS:
            shared = dict(data=config, seed=seed)
            rows.append(row(once(ViT(**shared), 'vit', folder/f'order-{order}'/f'vit-{seed}', data)))
            rows.append(row(once(DeiTLT(**shared, teacher=str(teacher.path)), 'deit-lt', folder/f'order-{order}'/f'deit-lt-{seed}', data)))
            with whole_file(HERE/'demo.json') as path:
                path.write_text(json.dumps(dict(maker='data/results/make_demo.py', processor=platform.machine(), rows=rows), indent=1) + '\n')
            print(f'order {order}, seed {seed}: written', flush=True)
    draw(Run(folder/'order-0'/'vit-0'), Run(folder/'order-0'/'deit-lt-0'))


def draw(vit: Run, deit_lt: Run):
    "The picture at the top of the README"
    with whole_file(HERE.parent.parent/'nbs'/'images'/'experts.png') as path:
        path.write_bytes(expert_accuracy(load_experts(deit_lt), load_experts(vit), 'no teacher').as_bytes('png', 110))


if __name__ == '__main__': main()
