from .figures import (
    objective_figure as objective_figure,
    registration_figure as registration_figure,
    save_figure as save_figure,
    template_figure as template_figure,
)
from .index import write_index as write_index
from .report import write_report as write_report
from .tables import markdown as markdown
