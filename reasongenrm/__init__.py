"""ReasonGenRM: turn preference data into a judge that writes a reason, then a verdict, and serve it."""

__version__ = "0.1.0"
