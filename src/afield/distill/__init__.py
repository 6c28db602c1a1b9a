"""From what was shown of an object to its affordance function."""

from afield.distill.fit import FitConfig as FitConfig
from afield.distill.fit import Fitted as Fitted
from afield.distill.fit import fit_affordance as fit_affordance
from afield.distill.labels import Flow as Flow
from afield.distill.labels import Labels as Labels
from afield.distill.labels import check_labels as check_labels
