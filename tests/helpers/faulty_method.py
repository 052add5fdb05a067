"""The file of a method that goes wrong, one fault each."""

FAULTY = '''
"""Methods that go wrong, one fault each."""

from dataclasses import dataclass

from harness import GradientMethod, hookimpl, torch


@dataclass
class Faulty(GradientMethod):
    """Goes wrong as told."""

    name = "faulty"
    needs = frozenset({"pairs"})

    fault: str = ""  # which

    def train(self, lab):
        for turn, pairs in enumerate(lab.pairs(steps=3, batch_size=4)):
            if self.fault == "reward":
                lab.reward(pairs)
            if self.fault == "metric":
                lab.log(strange=float("nan"))
            if self.fault == "bug":
                raise KeyError("a bug of the method")
            if self.fault == "usage" and turn == 1:
                lab.rollout(pairs.prompts, top_k=5)
            if self.fault == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            scale = float("nan") if self.fault == "nan" and turn == 1 else 1.0
            lab.step(lambda logp, batch: -logp.sum((1, 2)) * scale, pairs)
        return None if self.fault == "nothing" else lab.policy


@hookimpl
def register_methods(register):
    register(Faulty)
'''
