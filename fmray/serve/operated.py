"""The face with its operation around it: traffic, feedback and the playground, added from outside to whatever routes it has."""

from typing import TYPE_CHECKING, Any

from fmray.serve.canary import Observation
from fmray.serve.deployment import ModelSpec
from fmray.serve.face import Face
from fmray.serve.feedback import add_feedback
from fmray.serve.operation import Operation
from fmray.serve.playground import add_playground
from fmray.serve.traffic import Traffic

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle


class OperatedFace(Face):
    """The ingress deployment of an application in operation. `judge` decides its canaries (None where there is none); what else
    is given by name is the face's.
    """

    def __init__(
        self, operation: Operation, judge: "DeploymentHandle[Any] | None", specs: tuple[ModelSpec, ...], *handles: "DeploymentHandle[Any]", **face: Any
    ) -> None:
        super().__init__(specs, *handles, **face)
        self._operation, self._judge = operation, judge
        self._names = tuple(spec.name for spec in specs)

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Asked by Ray Serve in the replica, once this object is made."""
        from starlette.middleware import Middleware

        api = super().__serve_build_asgi_app__()
        add_feedback(api, self._operation.feedback, self._names)
        add_playground(api)
        routes = frozenset(str(getattr(route, "path", "")) for route in api.routes)
        # Last in the list is innermost: what protects the application stands before it.
        api.user_middleware.append(Middleware(Traffic, operation=self._operation, models=self._names, routes=routes, observe=self._observe))
        return api

    def _observe(self, name: str, observations: list[Observation]) -> None:
        if self._judge is not None:
            self._judge.observe.remote(name, observations)
