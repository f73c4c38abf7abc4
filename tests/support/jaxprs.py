"""Walking through traced programs."""


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def scans(found):
    return [eqn.params["length"] for eqn in found if eqn.primitive.name == "scan"]


def structure(traced):
    """A traced program: each operation with the shapes and types of what it gives."""
    return [
        (eqn.primitive.name, [(out.aval.shape, str(getattr(out.aval, "dtype", ""))) for out in eqn.outvars])
        for eqn in equations(traced.jaxpr)
    ]
