"""Provider `torch`: every operator of the interface in plain vectorised torch, exact to f32."""
