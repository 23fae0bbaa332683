"""Runs made of what other stores wrote: files of emcee's and Eryn's, folders of jexplore's."""

from ._interop.import_emcee import import_emcee
from ._interop.import_eryn import import_eryn
from ._interop.import_jexplore import import_jexplore
from ._interop.imported import Imported
from ._interop.importer import importer_of

__all__ = ["Imported", "import_emcee", "import_eryn", "import_jexplore", "importer_of"]
