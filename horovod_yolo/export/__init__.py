"""Trained models as files for other programs, and such files as what finds objects here."""
