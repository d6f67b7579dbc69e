"""How long it takes to start: `import vitnb` and `vitnb --help` beside Python alone, torch and timm.

    python bench/startup.py

Every command is a process of its own; they take turns, and what counts is the CPU time the process used.
"""
from common import Times, options, ratio, table, write
import resource, subprocess, sys, time

COMMANDS = {'python, nothing': ['-c', 'pass'], 'import vitnb': ['-c', 'import vitnb'],
            'vitnb --help': ['-c', 'from vitnb.cli import main; main(["--help"])'], 'vitnb runs': ['-c', 'from vitnb.cli import main; main(["runs"])'],
            'import torch': ['-c', 'import torch'], 'import timm': ['-c', 'import timm']}


def started(arguments: list[str]) -> tuple[float, float]:    # CPU seconds, wall seconds
    "Run Python once and wait for it"
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - wall


if __name__ == '__main__':
    args = options(__doc__.splitlines()[0], rounds=7)
    times = {name: Times() for name in COMMANDS}
    for i in range(1 + args.rounds):      # the first round fills the disk cache
        for name, command in COMMANDS.items():
            cpu, wall = started(command)
            if i: times[name].cpu.append(cpu); times[name].wall.append(wall)
    result = {name: dict(cpu_seconds=t.median, wall_seconds=sorted(t.wall)[len(t.wall) // 2], times_python=1 / ratio(times['python, nothing'], t)['median'])
              for name, t in times.items()}
    print(table(['command', 'CPU ms', 'ms', '× python'], [[n, f'{1000 * r["cpu_seconds"]:.0f}', f'{1000 * r["wall_seconds"]:.0f}', f'{r["times_python"]:.1f}'] for n, r in result.items()]))
    write('startup', dict(rounds=args.rounds, commands=result), args.out)
