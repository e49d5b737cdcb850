"""The ground that everything else stands on: the Plan, configuration, errors, time. Knows neither xDS nor ext_proc."""
