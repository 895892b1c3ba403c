"""What one would use instead of these scripts, for `studies.benchmark` and the tests to compare with.

Each is written as it is usually found, not slowed down.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torchvision import transforms

from data import ADDENDS, MEAN, STD, prepare


class UsualDigits(torchvision.datasets.MNIST):
    """The usual data set: a PIL image, ToTensor, Normalize and a random addend, one example at a time."""

    def __init__(self, images, digits):  # instead of torchvision's, which reads the files
        self.data, self.targets, self.target_transform = images.squeeze(1), digits, None
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])

    def __getitem__(self, index):
        image, digit = super().__getitem__(index)
        addend = torch.randint(0, ADDENDS, ()).item()
        return image, addend, digit, digit + addend


def usual_epoch(model, optimizer, loader, device, memory_format):
    """An epoch of the usual loop over a `DataLoader` of `UsualDigits`, the images in the memory layout of the model."""
    model.train()
    for batch in loader:
        image, addend, digit, sum_target = (tensor.to(device, non_blocking=True) for tensor in batch)
        digit_logits, sum_logits = model(image.contiguous(memory_format=memory_format), addend)
        loss = F.cross_entropy(digit_logits, digit) + F.cross_entropy(sum_logits, sum_target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.inference_mode()
def predict_pair_by_pair(model, images, device, batch_size=500):
    """As `evaluate.predict_pairs`, with one CNN pass for each of the N * 10 pairs."""
    model.eval()
    predictions = []
    for index in torch.arange(len(images) * ADDENDS).split(batch_size):
        image, addend = prepare(images[index // ADDENDS].to(device)), (index % ADDENDS).to(device)
        digit_logits, sum_logits = model(image, addend)
        predictions.append(torch.stack([digit_logits.argmax(-1), sum_logits.argmax(-1)]))
    return torch.cat(predictions, dim=1).cpu().view(2, len(images), ADDENDS).unbind()


class FastestPublicRecipe:
    """The fastest public MNIST recipe, github.com/tuomaso/train_mnist_fast, rebuilt from its description: digits only.

    The images are normalised, shuffled once and held in memory before the clock starts. Then one epoch in batches of
    256, Adam with betas 0.7 and 0.9, one-cycle up to 1e-2. As published, it has the default memory layout and no
    autocast to bfloat16.
    """

    def __init__(
        self,
        images,
        digits,
        device,
        memory_format=torch.contiguous_format,
        bfloat16=False,
        seed=0,
        batch_size=256,
        rate=1e-2,
        flatten=nn.Flatten,
    ):
        torch.manual_seed(seed)
        self.device, self.bfloat16, self.rate = device, bfloat16, rate
        self.model = nn.Sequential(
            *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()),
            *(flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)),
        ).to(device, memory_format=memory_format)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=rate, betas=(0.7, 0.9), fused=True)
        order = torch.randperm(len(images))
        image = prepare(images[order].to(device)).contiguous(memory_format=memory_format)
        self.steps = list(zip(image.split(batch_size), digits[order].to(device).split(batch_size), strict=True))

    def train(self):
        """The epoch: what is timed."""
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, self.rate, total_steps=len(self.steps), cycle_momentum=False
        )
        for image, digit in self.steps:
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                logits = self.model(image)
            F.cross_entropy(logits.float(), digit).backward()
            self.optimizer.step()
            schedule.step()

    @torch.inference_mode()
    def accuracy(self, images, digits):
        """Digit accuracy, from 0 to 1."""
        predictions = [self.model(prepare(batch.to(self.device))).argmax(-1).cpu() for batch in images.split(500)]
        return (torch.cat(predictions) == digits).double().mean().item()
