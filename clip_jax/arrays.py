"""What is said of arguments that may be arrays of JAX or of NumPy: `Float[AnyArray, "B D"]`."""

import numpy as np
from jaxtyping import Array

AnyArray = Array | np.ndarray
