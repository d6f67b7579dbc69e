"The demo's claim in small: a shorter training already splits the two tokens into a head and a tail expert"
import json

from conftest import BIN, call


def test_dist_becomes_the_tail_expert_and_cls_the_head_expert(tmp_path):
    print(call(BIN/'vitnb', 'demo', '--epochs', '16', '--out', 'demo', cwd=tmp_path, minutes=20))
    vit, deit_lt = (json.loads((tmp_path/'demo'/m/'status.json').read_text())['test'] for m in ('vit', 'deit-lt'))
    assert deit_lt['dist']['tail'] > deit_lt['cls']['tail'] + 15
    assert deit_lt['cls']['head'] > deit_lt['dist']['head'] + 5
    assert deit_lt['dist']['overall'] > vit['avg']['overall'] + 5
    assert abs(vit['cls']['tail'] - vit['dist']['tail']) < 5, 'without a teacher nothing tells the two tokens apart'
    assert deit_lt['avg']['overall'] > vit['avg']['overall']
