"The benchmark of a GPU, rehearsed on a CPU: it keeps what it has measured, goes on from there, and claims nothing without a GPU"
import json, sys
import pytest
from conftest import ROOT


@pytest.fixture
def gpu(monkeypatch):
    "bench/gpu.py, and how to call it with the settings of a rehearsal"
    monkeypatch.setenv('OMP_NUM_THREADS', '1'), monkeypatch.setenv('TORCHINDUCTOR_COMPILE_THREADS', '1')      # it sets them; so they are put back
    monkeypatch.syspath_prepend(ROOT/'bench')
    before = set(sys.modules)
    import gpu, show
    def call(*options):
        monkeypatch.setattr(sys, 'argv', ['gpu.py', '--shapes', 'nano', '--batch', '4', '--steps', '1', *map(str, options)])
        gpu.main()
    gpu.call, gpu.as_markdown = call, show.gpu
    yield gpu
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], '__file__', '')).startswith(str(ROOT/'bench')): del sys.modules[name]


def test_the_benchmark_of_a_gpu_goes_on_from_its_file(gpu, tmp_path, monkeypatch, capsys):
    path = tmp_path/'bench_gpu.json'
    done, whole = [], gpu.one_round
    def once(*given):
        done.append(1)
        if len(done) == 4: raise KeyboardInterrupt      # the second of two calls ends in its second round; the first of each is to warm up
        return whole(*given)
    monkeypatch.setattr(gpu, 'one_round', once)
    gpu.call('--device', 'cpu', '--rounds', 1, '--out', path)
    first = json.loads(path.read_text())['shapes']['nano']['rounds']
    with pytest.raises(KeyboardInterrupt): gpu.call('--device', 'cpu', '--rounds', 3, '--out', path)
    assert json.loads(path.read_text())['shapes']['nano']['rounds'] == first and len(first) == 1
    gpu.call('--device', 'cpu', '--rounds', 2, '--out', path)
    saved = json.loads(path.read_text())
    rounds, summary = saved['shapes']['nano']['rounds'], saved['shapes']['nano']['summary']
    assert rounds[0] == first[0] and len(rounds) == 2 and {*summary} == {'official-style', 'ours', 'ours, labels kept'} == {*rounds[1]} - {gpu.PEAK}
    middle = sum(r['official-style'] / r['ours'] for r in rounds) / 2
    assert summary['ours']['to_official']['median'] == pytest.approx(middle, rel=1e-3) and summary['official-style']['to_official']['median'] == 1
    assert 'a rehearsal on a CPU' in gpu.as_markdown(saved) and '| nano | ours, labels kept |' in gpu.as_markdown(saved)
    made = len(done)
    gpu.call('--device', 'cpu', '--rounds', 2, '--out', path)
    assert len(done) == made and 'nano, 4 images a step' in capsys.readouterr().out      # nothing was left to measure
    with pytest.raises(SystemExit, match='another kind'): gpu.call('--device', 'cpu', '--rounds', 3, '--steps', 2, '--out', path)


def test_without_a_gpu_nothing_goes_among_the_results(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, 'write', lambda *given: pytest.fail('written'))
    monkeypatch.setattr(gpu.torch.cuda, 'is_available', lambda: False)
    gpu.call()
    assert 'nothing to measure' in capsys.readouterr().out
    monkeypatch.setattr(gpu, 'build', lambda *given: ({'ours': None}, {}))
    monkeypatch.setattr(gpu, 'facts', lambda *given: dict(batch_size=4, workers=0, attention='', loader_images_per_second=1., operations=dict(student=1, our_student=1, teacher=1), rounds=[], memory={}))
    monkeypatch.setattr(gpu, 'one_round', lambda *given: ({'official-style': 1., 'ours': 1., gpu.PEAK: 1.}, {}))
    gpu.call('--device', 'cpu', '--rounds', 1)
    assert '| ours' in capsys.readouterr().out


def test_a_row_of_steps_is_timed_whole(gpu, monkeypatch):
    happened = []
    monkeypatch.setattr(gpu, 'wait', lambda device: happened.append('wait'))
    assert gpu.block(lambda: happened.append('step'), 3, gpu.torch.device('cpu')) < 1
    assert happened == ['wait', 'step', 'step', 'step', 'wait']
