"""Families out of repositories of the Hugging Face hub: `find` says where one is, `load_repository` makes a family.

config.json decides what a repository holds; a line in `ARCHITECTURES` makes one more. Weights are safetensors alone,
and nothing that lies in a repository is run.
"""

from .load import ARCHITECTURES, load_family, load_repository
from .repository import Repository, Wanted, find

__all__ = ["ARCHITECTURES", "Repository", "Wanted", "find", "load_family", "load_repository"]
