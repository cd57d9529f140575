"""How long a training takes on machines that are not there yet: from measurements and assumptions."""
