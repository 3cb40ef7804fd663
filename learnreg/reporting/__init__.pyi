from .figures import (
    registration_figure as registration_figure,
    save_figure as save_figure,
    template_figure as template_figure,
)
from .tables import markdown as markdown
