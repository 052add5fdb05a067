"""Runs that count the models and the bytes of tensors in memory."""

from .tools import command, fresh, on_small, plugin

# Counts the trunks in memory, and the bytes of all tensors in sizes of a trunk, whenever something
# of interest happens.
COUNTER = """
import gc
import os

from harness import hookimpl


def note(what):
    import torch
    from transformers import PreTrainedModel

    found = [m for m in gc.get_objects() if issubclass(type(m), PreTrainedModel)]
    found = [m for m in found if m.base_model is m]
    found = [m for m in found if next(m.parameters()).device.type != "meta"]
    size = sum(p.nbytes for p in found[0].parameters())
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    tensors = [t for t in tensors if t.device.type == "cpu"]
    whole = sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())
    with open(os.environ["COUNTED"], "a") as stream:
        stream.write(f"{what} {len(found)} {whole / size:.3f}\\n")


def noting(what, function):
    def noted(*args, **more):
        note(what)
        return function(*args, **more)

    return noted


@hookimpl
def run_started():
    from harness.evaluation import answers, evaluate

    answers.draw_answers = noting("answer", answers.draw_answers)
    evaluate._score = noting("score", evaluate._score)
    evaluate.sampled_kl = noting("kl", evaluate.sampled_kl)


@hookimpl
def step_logged(phase):
    note(phase)
"""


def counted(folder, method, *more):
    """What a run had in memory: {occasion: the largest (trunks, sizes of a trunk)}."""
    log = fresh("log") / "counted"
    args = on_small(method, "-p", plugin(folder, "counter", COUNTER), *more, results=folder)
    done = command(*args, env={"COUNTED": str(log)})
    assert done.code == 0, done.text
    found = {}
    for line in log.read_text().splitlines():
        what, trunks, sizes = line.split()
        found[what] = max(found.get(what, (0, 0.0)), (int(trunks), float(sizes)))
    return found
