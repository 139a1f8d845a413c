"""Arms x seeds: trained, evaluated, compared."""
