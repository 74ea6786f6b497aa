"""Envoy's configuration in files that it reads again whenever they are replaced: a new model needs no restart.

Envoy watches the files of a `path_config_source` for renames (xDS over the file system), so each is replaced whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_TYPES = {
    "clusters": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "listeners": "type.googleapis.com/envoy.config.listener.v3.Listener",
}


class Files:
    """The clusters and the listeners of one Envoy, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.version = 0
        """Of the listeners, as Envoy tells it once it has read them."""
        self._folder = folder
        self._clusters: dict[str, Any] = {}

    def bootstrap(self, rendered: dict[str, Any]) -> dict[str, Any]:
        """What Envoy is started with, from a whole bootstrap; its listeners and clusters are in the files."""
        self.clusters(rendered)
        self.listeners(rendered)
        sources = {f"{short}_config": self._source(name) for short, name in (("cds", "clusters"), ("lds", "listeners"))}
        rest = {key: value for key, value in rendered.items() if key != "static_resources"}
        # Envoy wants to know who it is when configuration comes from elsewhere.
        return {"node": {"id": "pointsman", "cluster": "pointsman"}, **rest, "dynamic_resources": sources}

    def clusters(self, rendered: dict[str, Any]) -> None:
        """Put the clusters into force. Those of models that are gone stay: answers may be on their way from there.

        They come before the `listeners`, whose routes name them: wait until Envoy has them.
        """
        self._clusters |= {cluster["name"]: cluster for cluster in rendered["static_resources"]["clusters"]}
        self._write("clusters", list(self._clusters.values()))

    def listeners(self, rendered: dict[str, Any]) -> None:
        """Put the listeners into force, with their routes; requests under way end on those that they began with."""
        self.version += 1
        self._write("listeners", rendered["static_resources"]["listeners"], version_info=str(self.version))

    def _write(self, name: str, resources: list[dict[str, Any]], **more: str) -> None:
        path = self._folder / f"{name}.json"
        new = path.with_suffix(".new")
        typed = [{"@type": _TYPES[name], **resource} for resource in resources]
        new.write_text(json.dumps({**more, "resources": typed}))
        os.replace(new, path)

    def _source(self, name: str) -> dict[str, Any]:
        return {"resource_api_version": "V3", "path_config_source": {"path": str(self._folder / f"{name}.json")}}
