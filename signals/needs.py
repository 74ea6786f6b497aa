"""What a request needs that not every model can do."""

from __future__ import annotations

from signals.facts import Facts


class Needs:
    """Quick input: the capabilities (decisions.model.Capability) that the request needs, by what it carries."""

    def compute(self, facts: Facts) -> frozenset[str]:
        request = facts.request
        found = set()
        for message in request.messages:
            if message.images:
                found.add("vision")
            if message.audio:
                found.add("audio")
            if message.files:
                found.add("files")
        if request.asking.tools(request):
            found.add("tools")
        if request.asking.schema(request):
            found.add("json_schema")
        return frozenset(found)


NEEDS = Needs()
