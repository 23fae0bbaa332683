"""Runs made of what other stores wrote: files of emcee's and Eryn's, folders of jexplore's."""

from .erynfile import import_eryn
from .imported import Imported
from .importemcee import import_emcee
from .importer import importer_of
from .importjexplore import import_jexplore

__all__ = ["Imported", "import_emcee", "import_eryn", "import_jexplore", "importer_of"]
