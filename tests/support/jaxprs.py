"""Inspection of jaxprs, JAX's traced programs."""


def equations(jaxpr):
    """All equations of a jaxpr, including those of nested jaxprs (scan, cond, jit)."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def scans(found):
    """The lengths of the scans among the equations `found`."""
    return [eqn.params["length"] for eqn in found if eqn.primitive.name == "scan"]


def structure(traced):
    """The primitives of a traced program in order, with the shapes and dtypes of their outputs, to compare programs."""
    return [
        (eqn.primitive.name, [(out.aval.shape, str(getattr(out.aval, "dtype", ""))) for out in eqn.outvars])
        for eqn in equations(traced.jaxpr)
    ]
