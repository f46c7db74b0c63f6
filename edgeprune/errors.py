"""The errors of the project; defined at the bottom of the house so that converters can raise them too."""

from converters.errors import EdgepruneError, ToolError, UserError

__all__ = ["EdgepruneError", "ToolError", "UserError"]
