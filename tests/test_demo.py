"The claim in small: a training shorter than the demo's, re-weighted from its middle on, already splits the two tokens into a head and a tail expert"
import json

from conftest import BIN, call


def test_dist_becomes_the_tail_expert_and_cls_the_head_expert(tmp_path):
    "What ViT reaches beside it takes as long again; that comparison is the experiments', at full length and with several seeds"
    print(call(BIN/'vitnb', 'train', 'deit-lt', '--epochs', '8', '--drw-start', '.5', '--out', 'run', cwd=tmp_path, minutes=20))
    reached = json.loads((tmp_path/'run/status.json').read_text())['test']
    assert reached['dist']['tail'] > reached['cls']['tail'] + 15
    assert reached['cls']['head'] > reached['dist']['head'] + 5
    assert reached['cls']['overall'] + 3 < reached['dist']['overall'] and reached['cls']['overall'] < reached['avg']['overall']
