"""What the cases are made of: batches, numbers that make faults visible, random weights. Data in, arrays out."""
