"""A policy of random weights that writes all kinds of things."""

import shutil

import torch
from transformers import AutoModelForCausalLM


def louder(policy: str, folder: str) -> str:
    """`policy` with weights six times as large, in `folder`: random ones write line breaks alone at temperature 0."""
    shutil.copytree(policy, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    model.save_pretrained(folder)
    return folder
