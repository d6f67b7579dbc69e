"""Print the tables of the committed results, or put them into bench/README.md.

    python bench/show.py [--write]
"""
import json, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MARK = '<!-- tables -->\n'
# times the official-style step: what a prototype of this project reached, beside an imitation of its own
WANTED = dict(tiny={'ours': 2.4, 'ours, labels kept': 2.5}, nano={'ours': 2.1, 'ours, labels kept': 2.7}, nano28={'ours': 2.6, 'ours, labels kept': 4.})


def read(name: str) -> dict | None:
    path = HERE.parent/'data'/'results'/f'bench_{name}.json'
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else None


def lines(header: list[str], rows: list[list]) -> str:
    return '\n'.join('| ' + ' | '.join(map(str, r)) + ' |' for r in [header, ['---', *['---:'] * (len(header) - 1)], *rows])


def times(r: dict) -> str:      # of `middle`
    "A ratio with the middle half of its rounds"
    return f'{r["median"]:.2f} ({r["low"]:.2f}–{r["high"]:.2f})'


def type_of(size: dict) -> str:
    "What ours computes in by default on that machine"
    return 'bf16' if size['bf16'] else 'fp32'


def step(saved: dict) -> str:
    "One row a variant and size"
    kind = type_of(next(iter(saved['shapes'].values())))
    rows = [[s['shape'], k, f'{v["images_per_second"]:.0f}', times(v['to_official']), WANTED.get(name, {}).get(k.replace(', compiled', ''), '–'), times(v[f'to_timm_{kind}']), f'{v["share_of_peak"]:.0%} of {v["type"]}']
            for name, s in saved['shapes'].items() for k, v in s['variants'].items()]
    pieces = [[s['shape'], *[f'{1000 * s["parts"][p]:.0f}' for p in ('data', 'teacher', 'student', 'optimiser', "the others' data")]] for s in saved['shapes'].values()]
    return lines(['student', 'step', 'images/s', '× official-style', 'wanted', f'× timm {kind}', 'of peak'], rows) + '\n\nWhere our step goes, ms:\n\n' + \
           lines(['student', 'data', 'teacher', 'student', 'optimiser', "the others' data"], pieces)


step_fp32 = step


def profile(saved: dict) -> str:
    kinds = list(next(iter(saved['shapes'].values()))['per_cent'])
    return lines(['per cent of our step', *[s['shape'] for s in saved['shapes'].values()]], [[k, *[f'{s["per_cent"][k]:.0f}' for s in saved['shapes'].values()]] for k in kinds])


def startup(saved: dict) -> str:
    return lines(['command', 'CPU ms', '× python'], [[f'`{n}`', f'{1000 * r["cpu_seconds"]:.0f}', f'{r["times_python"]:.1f}'] for n, r in saved['commands'].items()])


def memory(saved: dict) -> str:
    return lines(['training', 'before, MB', 'peak, MB', 'it takes, MB'], [[n, f'{r["built_mb"]:.0f}', f'{r["peak_mb"]:.0f}', f'{r["peak_mb"] - r["built_mb"]:.0f}'] for n, r in saved['trainings'].items()])


def gpu(saved: dict) -> str:
    "One row a variant and size, and what the official-style loop's data loader can deliver"
    rows = [[name, k, f'{v["images_per_second"]["median"]:.0f}', times(v['to_official']), f'{v["share_of_peak"]:.0%}', f'{v["gigabytes"]:.1f}']
            for name, s in saved['shapes'].items() for k, v in s['summary'].items()]
    loaders = [[name, s['workers'], f'{s["loader_images_per_second"]:.0f}'] for name, s in saved['shapes'].items()]
    return f'GPU: {saved["asked"]["gpu"]}, CUDA {saved["asked"]["cuda"]}\n\n' + lines(['student', 'step', 'images/s', '× official-style', 'of peak', 'GB'], rows) + \
           "\n\nThe official-style loop's data loader alone:\n\n" + lines(['student', 'processes', 'images/s'], loaders)


def time_to_accuracy(saved: dict) -> str:
    cell = lambda v, form: '–' if v is None else format(v, form)
    return lines(['seed', 'accuracy to reach', 'official-style, s', 'ours, s', 'times as fast'],
                 [[s, f'{r["goal"]:.1%}', f'{r["official_seconds"]:.0f}', cell(r['our_seconds'], '.0f'), cell(r['ratio'], '.2f')] for s, r in saved['summary'].items()])


def attention(saved: dict) -> str:
    batches = saved['images_at_once']
    most = lambda way: f'{saved["targets"][way]:.2f}' if way in saved['targets'] else '–'
    first = lines([f'{saved["model"]}: × a plain forward pass', *[f'{n} image{"s" if int(n) > 1 else ""} at once' for n in batches], 'at most'],
                  [[way, *[times(b[way]["times_plain"]) for b in batches.values()], most(way)] for way in next(iter(batches.values())) if way != 'plain'])
    return first + '\n\nMemory of rows and numbers:\n\n' + lines(['images', 'after one batch, MB', 'peak, MB'], [[n, f'{r["after_one_batch_mb"]:.0f}', f'{r["peak_mb"]:.0f}'] for n, r in saved['memory_by_images'].items()])


def ranks(saved: dict) -> str:
    return lines([f'ranks at {saved["side"]} px of', 'before, MB', 'peak, MB', 'they take, MB', 'CPU seconds'],
                 [[n, f'{r["before_mb"]:.0f}', f'{r["peak_mb"]:.0f}', f'{r["peak_mb"] - r["before_mb"]:.0f}', f'{r["cpu_seconds"]:.0f}'] for n, r in saved['images'].items()])


def widgets(saved: dict) -> str:
    times = [[n, f'{r["median"]:.0f} ({r["low"]:.0f}–{r["high"]:.0f})'] for n, r in saved['milliseconds'].items()]
    return (lines(['moved in JupyterLab: from the key to the new picture', 'ms'], times) +
            f'\n\nFirst view of a saved run: {saved["first_view_seconds"]:.2f} s; the saved notebook: {saved["notebook_bytes"] / 1e6:.2f} MB; load of the machine: {saved["load"]:.1f}.')


TITLES = dict(step='The training step', step_fp32='The training step on a processor without bfloat16 instructions', profile='On what the step is spent', time_to_accuracy='Time to accuracy', startup='Start-up', memory='Memory', gpu='On a GPU',
              attention='Attention beside a forward pass', ranks='Memory of the ranks of tokens', widgets='The workbench')

def everything() -> str:
    "All tables there are results for"
    parts = []
    for name, title in TITLES.items():
        if not (saved := read(name)): continue
        m = saved['machine']
        parts.append(f'### {title}\n\n`{saved["command"]}` on {m["processor"]} ({m["capability"]}, {m["threads"]} thread), torch {m["torch"]}, timm {m["timm"]}\n\n{globals()[name](saved)}\n')
    return '\n'.join(parts)


if __name__ == '__main__':
    if '--write' not in sys.argv: print(everything())
    else:
        readme = HERE/'README.md'
        readme.write_text(readme.read_text(encoding='utf-8').partition(MARK)[0] + MARK + '\n' + everything(), encoding='utf-8')
