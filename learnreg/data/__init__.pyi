from .augmentation import RandomTransform as RandomTransform
from .datamodule import RegistrationData as RegistrationData
from .datasets import (
    Case as Case,
    OrderedPairs as OrderedPairs,
    PairDataset as PairDataset,
    centered as centered,
    collate as collate,
    reversed_pairs as reversed_pairs,
    within_groups as within_groups,
)
from .formats import Subject as Subject, read_pairs as read_pairs, read_subjects as read_subjects
from .intensity import Compose as Compose, Intensity as Intensity
from .mni152 import MNI152Data as MNI152Data, mni152_template as mni152_template
from .preprocessing import ModelSpace as ModelSpace, normalized as normalized, onto_grid as onto_grid
from .shapes import ShapesData as ShapesData
from .splits import check_apart as check_apart, duplicates as duplicates, fold_of as fold_of
from .store import ImageStore as ImageStore
from .survey import Entry as Entry, Finding as Finding, survey as survey
from .synthesis import changed_intensities as changed_intensities, random_velocity as random_velocity
from .universal import RandomPairs as RandomPairs, UniversalData as UniversalData
