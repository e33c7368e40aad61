"""YAML files: choices of the configuration groups. Defaults are in the dataclasses; a file holds what differs."""
