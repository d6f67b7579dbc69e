"How others use vitnb, for a type checker: every call and every result of this file is checked (tests/test_types.py)"
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vitnb.analysis.experts import Experts, load_experts
from vitnb.core import UserError
from vitnb.data.inspect import Doubt, Finding, Look, doubtful, findings, look_at_folder
from vitnb.data.longtail import Groups, by_size, class_counts, size_groups
from vitnb.data.sets import DataConfig, ImageSet, LongTailed, long_tailed
from vitnb.methods.deit_lt import DeiTLT
from vitnb.methods.doctor import Advice, advise, doctor
from vitnb.methods.teacher import Teacher
from vitnb.models.student import StudentConfig, TokenLogits, make_student, student_config
from vitnb.training.losses import cross_entropy
from vitnb.training.runs import Run, open_run
from vitnb.training.train import train
from vitnb.widgets.report import write_report


def from_images_to_report(folder: Path) -> Path:
    "Settings, training, report"
    images = DataConfig(f'imagefolder:{folder}', rho=50., image_folder_size=64, skip_unreadable=True)
    data: LongTailed = long_tailed(images)
    teacher: Run = train(Teacher(data=images, epochs=3), 'teacher', folder/'teacher', data)
    run: Run = train(DeiTLT(data=images, epochs=3, student='nano', teacher=str(teacher.path)), 'deit-lt')
    return write_report(run, [open_run(teacher.path)], data.test)


def from_run_to_numbers(folder: str) -> float:
    "What the two tokens say"
    experts: Experts = load_experts(open_run(folder))
    logits: np.ndarray = experts.logits['cls']
    return float((logits.argmax(1) == experts.labels).mean())


def a_network() -> torch.Tensor:
    "A student by itself"
    config: StudentConfig = student_config('tiny', 32, 3, 10)
    student: nn.Module = make_student(config)
    logits: TokenLogits = student(torch.zeros(2, 3, 32, 32))
    return cross_entropy(logits.avg, torch.zeros(2, dtype=torch.long))


def a_look(folder: Path) -> list[str]:
    "Advice"
    try: look: Look = look_at_folder(folder)
    except UserError as e: return [str(e)]
    said: list[Finding] = findings(look)
    first: Doubt = doubtful(look)[0]
    advice: Advice = advise(look, DataConfig(f'imagefolder:{folder}'))
    counts: np.ndarray = class_counts(10, 1800, 100)
    groups: list[Groups] = [size_groups(counts), size_groups([5, 3, 1]), size_groups(by_size(counts))]      # arrays and lists alike
    images: ImageSet = long_tailed().train
    return [doctor(str(folder), 'cpu'), said[0].title, look.names[first.image], advice.names[0], str(counts.sum()), str(len(images)), groups[0].rule]
