"""Weights without a trainer: into a model and out of it, whole or in part."""

from trainers.weights.export import export
from trainers.weights.initialize import Part, initialize
from trainers.weights.load import load
from trainers.weights.mapped import load_safetensors

__all__ = ["Part", "export", "initialize", "load", "load_safetensors"]
