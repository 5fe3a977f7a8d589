"""Imported once by the fork server, so that every rank of every test starts in a moment."""

import os

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", OPENBLAS_NUM_THREADS="1")

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
import torch
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401

import zerofleet.trainer.loop  # noqa: F401

torch.set_num_threads(1)
