"""Peak memory of a short training of the nano student: ours beside the official-style loop.

    python bench/memory.py

Each is a process of its own that trains some steps and then says its largest resident size. What Python, torch and the data
take anyway is measured by a process that builds everything and takes no step.
"""
from common import options, table, write
import json, resource, subprocess, sys, warnings


def child(which: str, steps: int, shape_name: str, batch: int):
    "Build one of them, take the steps, and print a line of JSON"
    warnings.filterwarnings('ignore')
    from problems import SHAPES, random_data
    from step import Official, Ours
    from vitnb.core import keep_freed_memory
    from vitnb.models.teacher import TeacherConfig, make_teacher
    shape = SHAPES[shape_name]
    data, teacher = random_data(shape), make_teacher(TeacherConfig(32, shape.in_chans, shape.num_classes, cosine=False))
    if which == 'ours': keep_freed_memory()
    act = (Official if which == 'official-style' else Ours)(shape, teacher, data, batch)
    first = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(steps): act()
    last = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(dict(built_mb=first.ru_maxrss / 1024, peak_mb=last.ru_maxrss / 1024, page_faults_a_step=(last.ru_minflt - first.ru_minflt) / max(1, steps))))


if __name__ == '__main__':
    args = options(__doc__.splitlines()[0], shapes=['nano', 'tiny'], steps=10, batch=128, only='')
    if args.only: sys.exit(child(args.only, args.steps, args.shapes[0], args.batch))
    results = {}
    for shape in args.shapes:
        for which in ('official-style', 'ours'):
            said = subprocess.run([sys.executable, __file__, '--only', which, '--shapes', shape, '--steps', str(args.steps), '--batch', str(args.batch)], capture_output=True, text=True, check=True)
            results[f'{shape}, {which}'] = json.loads(said.stdout.splitlines()[-1])
    print(table(['training', 'built, MB', 'peak, MB', 'training takes, MB', 'page faults a step'],
                [[n, f'{r["built_mb"]:.0f}', f'{r["peak_mb"]:.0f}', f'{r["peak_mb"] - r["built_mb"]:.0f}', f'{r["page_faults_a_step"]:.0f}'] for n, r in results.items()]))
    write('memory', dict(steps=args.steps, batch_size=args.batch, trainings=results), args.out)
